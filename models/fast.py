"""Fast inference with IFRNet: the same weights, laid out and computed in the way that suits the hardware.

    network = fast.FastIFRNet(model, device, dtype)
    frame = network.decode(network.encode(img0, img1), t).imgt

Features are channels-last, in half precision where the hardware has it (bfloat16 on CPUs, float16 on GPUs); flow,
coordinates and frames stay float32. Between the convolutions there is one pass over memory in place of several
(kernels.py): activations in place, the side channels of a residual block written back where they were, a decoder's
input sampled directly into the buffer that its convolution reads. On CPUs most convolutions are winograd.py's where
that pays, the others oneDNN's with weights packed for it; on GPUs those in half precision are cuda_convolution.py's,
the others cuDNN's, and an Interpolator's repeated calls are CUDA graphs (recording.py). No code is compiled for one
frame size, so that a new size needs no compilation.
"""

import copy
import warnings
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .ifrnet import LEVELS, IFRNet, Interpolation, Pair, check_frames, common_mean, times_of
from .layers import resize
from .strips import by_rows, even
from .winograd import Winograd, as_convolution, serves

ALIGNED = 8  # channels that tensor cores read at a time; cuDNN copies tensors whose channels are not a multiple of it
STRIP, LEAST_ROWS = 2**17, 32  # pixels of a level that a CPU computes at a time, and the fewest rows
PAYS, PIXELS_PAY = 1.5e12, 1e9  # see pays
MEASURED = (9, 0)  # compute capability of the GPU that fast mode was measured on
LARGE = 11  # below 2^10 pixels, each power of two of an input's size has weights packed for it: the best layouts differ
NARROW = 4  # pixels a row: with fewer, oneDNN 3.x in bfloat16 reads beyond rows (seen with 2, 144 channels, stride 2)


def best_precision(device: torch.device) -> str:
    """The fastest of Interpolator's precisions that the device has instructions for; warns where that is float32."""
    if device.type == "cuda":
        half = torch.cuda.get_device_capability(device) >= (7, 0)
    else:
        half = device.type == "cpu" and cpu_has_bf16()
    if not half:
        name = "GPU" if device.type == "cuda" else device.type
        warnings.warn(f"fast mode in float32: this {name} has no instructions for half precision", stacklevel=3)
        return "fp32"
    return "fp16" if device.type == "cuda" else "bf16"


def proven(model: IFRNet, device: torch.device, precision: str | None) -> tuple[str, str]:
    """The fastest mode and precision of those that were measured: fast mode on x86 CPUs, in bfloat16 where there are
    instructions for it, otherwise in float32, which gains less; on GPUs like the H200, in float16; elsewhere eager
    mode. precision: the one required, or None."""
    if device.type == "cuda":
        nvidia = torch.version.hip is None  # AMD's capabilities are others
        suits, choices = nvidia and torch.cuda.get_device_capability(device) == MEASURED, ("fp16",)
    else:
        suits = device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        choices = ("bf16", "fp32") if suits and cpu_has_bf16() else ("fp32",)
    if suits and model.act == "prelu" and precision in (None, *choices):
        return "fast", precision or choices[0]
    return "eager", precision or "fp32"


def pays(model: nn.Module, pixels: float, device: torch.device) -> bool:
    """Whether fast mode saves more time than it takes to start, for so many pixels in all.

    All three networks take about parameters / 26 multiply-accumulates per pixel. If parameters times pixels are PAYS,
    one thread takes 1.5 seconds in eager mode and 0.5 in fast mode, which takes another second to start the first time,
    when its library is built, and 0.1 later. On a GPU the kernels take five seconds to compile the first time, which
    fast mode saves on fewer than PIXELS_PAY with any network.
    """
    if device.type == "cuda":
        return pixels >= PIXELS_PAY
    work = pixels * sum(parameter.numel() for parameter in model.parameters())
    return device.type == "cpu" and work >= PAYS * torch.get_num_threads()


def cpu_has_bf16() -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # oneDNN also says yes on any x86 with AVX-512, where it may only emulate.
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return not x86 or any(has() for has in asked if has)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN can pack weights into a layout of its own."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Channels(NamedTuple):
    """Where a layer's channels lie among the `total` of a tensor. The others are and stay zero."""

    places: list[int]
    total: int

    def spread(self, x: Tensor, dim: int = 0) -> Tensor:
        """Weights of the layer's channels, along `dim`, padded with zeros to all channels."""
        whole = x.new_zeros(*x.shape[:dim], self.total, *x.shape[dim + 1 :])
        return whole.index_copy_(dim, torch.tensor(self.places, device=x.device), x)


def for_gpu(device: torch.device) -> bool:
    """Whether convolutions run on a GPU: channels are padded to eights, and cuDNN does not add a bias itself."""
    return device.type == "cuda"


def multiple(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def at_front(count: int, unit: int) -> Channels:
    return Channels(list(range(count)), multiple(count, unit))


def at_end(count: int, unit: int) -> Channels:
    total = multiple(count, unit)
    return Channels(list(range(total - count, total)), total)


class Conv:
    """A convolution, transposed or not, and the activation after it, with weights laid out for the hardware.

    kernel: the one that it will be called with, or a plainer one. inputs, outputs: where its channels lie. x: channels
    last.
    """

    def __init__(
        self,
        module: nn.Conv2d | nn.ConvTranspose2d,
        act: nn.PReLU | None,
        kernel: kernels.Eager,
        to: dict,
        inputs: Channels,
        outputs: Channels,
    ):
        self.transposed = isinstance(module, nn.ConvTranspose2d)
        self.stride, self.padding = list(module.stride), list(module.padding)
        weight = outputs.spread(inputs.spread(module.weight.detach(), 1 - self.transposed), int(self.transposed))
        self.weight = weight.to(**to, memory_format=torch.channels_last)
        self.bias = outputs.spread(module.bias.detach()).to(**to)
        slope = None if act is None else outputs.spread(act.weight.detach())
        self.slope = None if slope is None else slope.to(self.weight.device, torch.float32)
        self.packs = packs(self.weight.device, to["dtype"])
        self.packed: dict[int, Any] = {}  # weights packed for oneDNN by size, or for our kernel by a plan's groups
        # After cuDNN PyTorch would add the bias in a separate pass; the activation adds it instead.
        self.late = self.bias if act is not None and for_gpu(self.weight.device) else None
        self.winograd = None
        if kernel.winograd and serves(module, inputs.total):
            whole, phases = (as_convolution(module), 4) if self.transposed else (module, 1)
            spread = inputs.spread(whole.weight.detach(), 1)  # on a CPU outputs are not padded
            self.winograd = Winograd(spread, whole.bias.detach(), slope, to["dtype"], phases)

    def __call__(
        self,
        kernel: kernels.Eager,
        x: Tensor,
        add: Tensor | None = None,
        into: Tensor | None = None,
        tail: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """PReLU of the convolution of x (+ add), in the last channels of `into` where that is given.

        With `tail`, also a copy of its last `tail` channels, which are then undefined in the result itself.
        """
        if self.winograd and kernel.winograd:
            return self.winograd(kernel.winograd, x, add, into, tail)
        if kernel.convolves(self, x):
            return kernel.convolve(self, x, add, into, tail)
        y = self.convolve(x)
        if self.slope is None:
            return y
        result = kernel.prelu(y, self.slope, self.late, add, into, tail)
        return (y, result) if tail else result

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone; without its bias if that is left to the activation (`late`)."""
        function = F.conv_transpose2d if self.transposed else F.conv2d
        if not self.packs:
            bias = self.bias if self.late is None else None
            y = function(x, self.weight, bias, self.stride, self.padding)
            return y.contiguous(memory_format=torch.channels_last)  # as cuDNN's is and other libraries' may not be
        if x.shape[-1] < NARROW:
            whole = (tensor.float() for tensor in (x, self.weight, self.bias))
            y = function(*whole, self.stride, self.padding)
            return y.to(x.dtype, memory_format=torch.channels_last)
        size = min((x.shape[-2] * x.shape[-1]).bit_length(), LARGE)
        if size not in self.packed:
            self.packed[size] = self._pack(list(x.shape))
        ones, zeros, nothing = [1, 1], [0, 0], ("none", [], "")
        if self.transposed:
            function, shape = torch.ops.mkldnn._convolution_transpose_pointwise, (self.padding, zeros, self.stride)
        else:
            function, shape = torch.ops.mkldnn._convolution_pointwise, (self.padding, self.stride)
        return function(x, self.packed[size], self.bias, *shape, ones, 1, *nothing)

    def _pack(self, size: list[int]) -> Tensor:
        """The weights packed by oneDNN for an input size; at another size it may reorder them in every call."""
        ones, zeros = [1, 1], [0, 0]
        if self.transposed:
            pack = torch.ops.mkldnn._reorder_convolution_transpose_weight
            return pack(self.weight, self.padding, zeros, self.stride, ones, 1, size)
        return torch.ops.mkldnn._reorder_convolution_weight(self.weight, self.padding, self.stride, ones, 1, size)


class FastDecoder:
    """A Decoder with activations in place.

    level: from 1, the finest, to 4. feature: where the channels of the level's features lie. finer: those of the next
    finer level's features, which follow the flow in the result; None at level 1, whose result is still to be shuffled.
    """

    def __init__(
        self,
        decoder: nn.Module,
        level: int,
        kernel: kernels.Eager,
        to: dict,
        feature: Channels,
        finer: Channels | None,
    ):
        first, block, up = decoder.convblock
        unit, self.side = ALIGNED if for_gpu(to["device"]) else 1, block.split[1]
        count = 2 if level == LEVELS else 3  # features: of both frames, and below the top of the frame between
        rest = first[0].in_channels - count * len(feature.places)  # the time, or the flows
        places = [k * feature.total + place for k in range(count) for place in feature.places]
        places += [count * feature.total + k for k in range(rest)]
        self.inputs = multiple(count * feature.total + rest, ALIGNED)
        # Padding comes first, so that the side channels are still the last.
        inner, side = at_end(first[0].out_channels, unit), at_front(self.side, 1)
        self.first = Conv(*first, kernel, to, Channels(places, self.inputs), inner)
        among = (inner, side, inner, side)
        self.block = [Conv(*getattr(block, f"conv{i}"), kernel, to, c, c) for i, c in enumerate(among, start=1)]
        self.conv5 = Conv(block.conv5, block.prelu, kernel, to, inner, inner)
        if finer is None:  # with so few channels, twice the arithmetic runs at seven times the rate
            up = as_convolution(up)
            answer = at_front(up.out_channels, unit)
        else:
            answer = Channels(list(range(4 + len(finer.places))), multiple(4 + finer.total, unit))
        self.up = Conv(up, None, kernel, to, inner, answer)

    @property
    def convs(self) -> list[Conv]:
        return [self.first, *self.block, self.conv5, self.up]

    def __call__(self, kernel: kernels.Eager, x: Tensor) -> Tensor:
        x = self.first(kernel, x)  # rebound, so that the input's memory is freed
        y = x
        for wide, narrow in (self.block[:2], self.block[2:]):
            y, side = wide(kernel, y, tail=self.side)
            narrow(kernel, side, into=y)
        return self.up(kernel, self.conv5(kernel, y, add=x))

    def refine(
        self, kernel: kernels.Eager, answer: Tensor, flow: Tensor, f0: Tensor, f1: Tensor, top: int = 0
    ) -> Tensor:
        """See IFRNet.refine."""
        return self(kernel, kernel.join(answer, flow, f0, f1, self.inputs, top))


class FastIFRNet:
    """A copy of an IFRNet for inference, with its current weights. encode and decode are called like the network's;
    `decode` returns only the frame and, on request, the last flow.

    model: with PReLU; ValueError otherwise. dtype: of the features, float32, bfloat16 or float16. tell: see
    kernels.choose.
    """

    rows = None  # of the frame in a strip; None: _rows chooses for each level

    def __init__(self, model: IFRNet, device: torch.device, dtype: torch.dtype, tell: bool = True):
        if model.act != "prelu":
            raise ValueError(f"fast mode is for networks with PReLU, not {model.act}; use eager mode, without --fast")
        self.dtype = dtype
        self.kernel = kernels.choose(device, dtype, tell)
        kernel, to, unit = self.kernel, {"device": device, "dtype": dtype}, ALIGNED if for_gpu(device) else 1
        self.colours = multiple(3, unit)
        self.encoder, features, before = [], [None], at_front(3, unit)
        for stage in model.encoder.children():
            feature = at_front(stage[0][0].out_channels, unit)
            among = ((before, feature), (feature, feature))
            self.encoder.append([Conv(*stage[i], kernel, to, *channels) for i, channels in enumerate(among)])
            features.append(before := feature)
        self.decoders: dict[int, FastDecoder] = {}
        for level in range(1, LEVELS + 1):
            decoder = getattr(model, f"decoder{level}")
            self.decoders[level] = FastDecoder(decoder, level, kernel, to, features[level], features[level - 1])

    @property
    def convs(self) -> list[Conv]:
        """All convolutions."""
        inside = [conv for decoder in self.decoders.values() for conv in decoder.convs]
        return [conv for stage in self.encoder for conv in stage] + inside

    def in_strips(self, rows: int | None) -> "FastIFRNet":
        """The same network, computed in strips of about `rows` rows of the frame: see strips.py."""
        if rows == self.rows:
            return self
        other = copy.copy(self)
        other.rows = rows
        return other

    def _rows(self, x: Tensor, halvings: int, pixels: float) -> int:
        """How many rows of x to compute at a time: on a CPU, all at once is no faster and takes more memory.

        halvings: from the frame to x; pixels: of x, to compute at a time.
        """
        if self.rows is not None:
            return even(self.rows >> halvings)
        if x.device.type != "cpu":
            return x.shape[-2]
        return even(max(int(pixels / x.shape[-1]), LEAST_ROWS))

    def _stage(self, convs: list[Conv], x: Tensor, top: int = 0) -> Tensor:
        for conv in convs:
            x = conv(self.kernel, x.contiguous(memory_format=torch.channels_last))
        return x

    @torch.inference_mode()
    def encode(self, img0: Tensor, img1: Tensor, scale: float = 1.0) -> Pair:
        """See IFRNet.encode. The frames are kept as they are: `mean` of the result is 0. ValueError also for frames of
        another type than float32, or on another device."""
        check_frames(img0, img1, scale)
        device = self.encoder[0][0].weight.device
        for img in (img0, img1):  # kernels get no more than an address: of what lies there they read more, or less
            if img.dtype != torch.float32 or img.device != device:
                raise ValueError(f"frames of {img.dtype} on {img.device}; torch.float32 on {device} is needed")
        mean = common_mean(img0, img1)
        size = tuple(round(side * scale) for side in img0.shape[-2:])
        small = (img0, img1) if scale == 1 else (resize(img0, size=size), resize(img1, size=size))
        x, features = self.kernel.prepare(*small, mean, self.dtype, self.colours), []
        for halvings, convs in enumerate(self.encoder):
            # A stage's result has a quarter of the pixels of its input.
            x = by_rows(partial(self._stage, convs), self._rows(x, halvings, 4 * STRIP), x)
            features.append(x)
        pyramid0, pyramid1 = zip(*(level.chunk(2) for level in features))
        return Pair(img0, img1, torch.zeros_like(mean), pyramid0, pyramid1, scale)

    @torch.inference_mode()
    def decode(self, pair: Pair, t: Tensor | float, flow: bool = False) -> Interpolation:
        """See IFRNet.decode. flow: whether to return, beside the frame, the last flow, at its scaled size."""
        kernel, (t, times) = self.kernel, times_of(pair, t)
        top = [f.repeat_interleave(times, 0) for f in (pair.pyramid0[-1], pair.pyramid1[-1])]
        plane = t.to(self.dtype).expand(len(top[0]), 1, *top[0].shape[-2:])
        decoder, coarse = self.decoders[LEVELS], None
        x = F.pad(torch.cat([*top, plane], 1), (0, 0, 0, 0, 0, decoder.inputs - 2 * top[0].shape[1] - 1))
        answer = decoder(kernel, x.contiguous(memory_format=torch.channels_last))
        for level in range(LEVELS - 1, 0, -1):
            coarse = kernel.step(answer, coarse)
            f0, f1 = pair.pyramid0[level - 1], pair.pyramid1[level - 1]
            refine = partial(self.decoders[level].refine, kernel, f0=f0, f1=f1)
            answer = by_rows(refine, self._rows(answer, level, STRIP), answer, coarse)
        flows = (kernel.flow(answer, coarse),) if flow else ()
        return Interpolation(self._blend(pair, answer, coarse), flows, (), None)

    def _blend(self, pair: Pair, answer: Tensor, coarse: Tensor) -> Tensor:
        """The frame from the last decoder's answer."""
        blend = partial(self.kernel.blend, img0=pair.img0, img1=pair.img1)
        if self.kernel.one_pass:
            return blend(answer, coarse)
        growth = 2 / pair.scale
        # A strip of the answer, from an even row on, must begin at a whole row of the frame.
        whole = (2 * growth) % 1 > 0
        rows = answer.shape[-2] if whole else self._rows(answer, 1, STRIP * pair.scale**2)
        return by_rows(lambda *x, top: blend(*x, top=round(growth * top)), rows, answer, coarse)
