"""IFRNet at the pace of the machine: the same weights, laid out and computed as the hardware likes it.

    network = fast.FastIFRNet(model, device, dtype)
    frame = network.decode(network.encode(img0, img1), t).imgt

Features are half precision (bfloat16 on CPUs, float16 on GPUs) in channels-last order; flow, coordinates and frames
stay float32. Between the convolutions there is one pass over memory where there were several (kernels.py): activation
in place, the side channels of a residual block put back where they were, a decoder's input sampled straight into the
buffer that its convolution reads. On CPUs most convolutions are winograd.py's where that pays, the others oneDNN's with
weights packed for it; on GPUs those in half precision are cuda_convolution.py's, the others cuDNN's, and all of an
Interpolator's call is a CUDA graph (recording.py). No code is made for a single size, so that every size is quick the
first time.
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

ALIGNED = 8  # channels: what tensor cores read at a time; cuDNN copies tensors that have another number of them
STRIP, LEAST_ROWS = 2**17, 32  # pixels and rows of a level that are worked on at a time on a CPU
PAYS = 1.5e12  # see pays
LARGE = 11  # inputs of fewer than 2^10 pixels have weights packed for their power of two: other layouts are best there
NARROW = 4  # pixels: below, oneDNN 3.x in bfloat16 reads beyond rows (seen with 2 pixels, 144 channels and stride 2)


def best_precision(device: torch.device) -> str:
    """The quickest of Interpolator's precisions that a device computes with instructions of its own."""
    if device.type == "cuda":
        half = torch.cuda.get_device_capability(device) >= (7, 0)
    else:
        half = device.type == "cpu" and cpu_has_bf16()
    if not half:
        warnings.warn(f"fast mode in float32: this {device.type} has no instructions for half precision", stacklevel=3)
        return "fp32"
    return "fp16" if device.type == "cuda" else "bf16"


def proven(model: IFRNet, device: torch.device, precision: str | None) -> tuple[str, str]:
    """The quickest mode and precision of those that were measured: on x86 CPUs fast mode, in bfloat16 where there are
    instructions for it, otherwise in float32, which gains less. precision: the only one to take, or None."""
    half = "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
    x86 = device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if x86 and model.act == "prelu" and precision in (None, half, "fp32"):
        return "fast", precision or half
    return "eager", precision or "fp32"


def pays(model: nn.Module, pixels: float, device: torch.device) -> bool:
    """Whether fast mode saves more time than its start costs, for so many pixels in all.

    All three networks take about parameters / 26 multiply-accumulates a pixel. PAYS of parameters times pixels take a
    thread one and a half seconds in eager mode, half a second in fast mode, whose start takes another the first time,
    when its library is built, and a tenth of one later.
    On a GPU kernels are compiled for longer than any one pair takes.
    """
    work = pixels * sum(parameter.numel() for parameter in model.parameters())
    return device.type == "cpu" and work >= PAYS * torch.get_num_threads()


def cpu_has_bf16() -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # oneDNN also says yes where it would emulate, on any x86 with AVX-512.
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return not x86 or any(has() for has in asked if has)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has a layout of its own for weights."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Channels(NamedTuple):
    """Where a layer's channels lie among the `total` of a tensor. The others are zero, and stay so."""

    places: list[int]
    total: int

    def spread(self, x: Tensor, dim: int = 0) -> Tensor:
        """Weights of the layer's channels, along `dim`, as weights of all."""
        whole = x.new_zeros(*x.shape[:dim], self.total, *x.shape[dim + 1 :])
        return whole.index_copy_(dim, torch.tensor(self.places, device=x.device), x)


def for_gpu(device: torch.device) -> bool:
    """Whether convolutions are a GPU's: channels come in eights, and cuDNN does not add a bias itself."""
    return device.type == "cuda"


def multiple(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def at_front(count: int, unit: int) -> Channels:
    return Channels(list(range(count)), multiple(count, unit))


def at_end(count: int, unit: int) -> Channels:
    total = multiple(count, unit)
    return Channels(list(range(total - count, total)), total)


class Conv:
    """A convolution, transposed or not, and the activation after it, with weights laid out for the machine.

    kernel: that it will be called with, or a plainer one. inputs, outputs: where its channels lie. x: channels last.
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
        self.packed: dict[int, Any] = {}  # weights as oneDNN wants them for a size, or our kernel for a plan's groups
        # PyTorch adds a bias in a pass of its own after cuDNN, which the activation can save.
        self.late = self.bias if act is not None and for_gpu(self.weight.device) else None
        self.winograd = None
        if kernel.winograd and serves(module, inputs.total):
            whole, phases = (as_convolution(module), 4) if self.transposed else (module, 1)
            spread = inputs.spread(whole.weight.detach(), 1)  # outputs lie side by side on a CPU
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

        With `tail`, also a copy of its last `tail` channels, in whose place anything may be.
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
        """The convolution alone; without its bias where `late` is to be added by the activation."""
        function = F.conv_transpose2d if self.transposed else F.conv2d
        if not self.packs:
            bias = self.bias if self.late is None else None
            y = function(x, self.weight, bias, self.stride, self.padding)
            return y.contiguous(memory_format=torch.channels_last)  # cuDNN's is, other libraries' may not be
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
        """The weights as oneDNN wants them for a size of input; at another it may reorder them in every call."""
        ones, zeros = [1, 1], [0, 0]
        if self.transposed:
            pack = torch.ops.mkldnn._reorder_convolution_transpose_weight
            return pack(self.weight, self.padding, zeros, self.stride, ones, 1, size)
        return torch.ops.mkldnn._reorder_convolution_weight(self.weight, self.padding, self.stride, ones, 1, size)


class FastDecoder:
    """A Decoder with activations in place.

    level: from 1, the finest, to 4. feature: how the channels of the level's features lie. finer: those of the next
    level's, which it answers with after the flow; None at level 1, whose answer is left to be shuffled.
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
        count = 2 if level == LEVELS else 3  # features: of both frames, and of the frame between
        rest = first[0].in_channels - count * len(feature.places)  # the time, or the flows
        places = [k * feature.total + place for k in range(count) for place in feature.places]
        places += [count * feature.total + k for k in range(rest)]
        self.inputs = multiple(count * feature.total + rest, ALIGNED)
        # Zeros before, so that the side channels are still the last.
        inner, side = at_end(first[0].out_channels, unit), at_front(self.side, 1)
        self.first = Conv(*first, kernel, to, Channels(places, self.inputs), inner)
        among = (inner, side, inner, side)
        self.block = [Conv(*getattr(block, f"conv{i}"), kernel, to, c, c) for i, c in enumerate(among, start=1)]
        self.conv5 = Conv(block.conv5, block.prelu, kernel, to, inner, inner)
        if finer is None:  # of so few channels that twice the arithmetic has seven times the pace
            up = as_convolution(up)
            answer = at_front(up.out_channels, unit)
        else:
            answer = Channels(list(range(4 + len(finer.places))), multiple(4 + finer.total, unit))
        self.up = Conv(up, None, kernel, to, inner, answer)

    @property
    def convs(self) -> list[Conv]:
        return [self.first, *self.block, self.conv5, self.up]

    def __call__(self, kernel: kernels.Eager, x: Tensor) -> Tensor:
        x = self.first(kernel, x)  # one name: what has been read is let go
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
    """A copy of an IFRNet for inference, with the weights that it has now. encode and decode are called as the
    network's are; `decode` has no other results than the frame and, where it is asked for, the last flow.

    model: with PReLU; ValueError otherwise. dtype: of the features, float32, bfloat16 or float16. tell: see
    kernels.choose.
    """

    rows = None  # of the frame in a strip; None: as _rows chooses for a level

    def __init__(self, model: IFRNet, device: torch.device, dtype: torch.dtype, tell: bool = True):
        if model.act != "prelu":
            raise ValueError(f"fast mode is for networks with PReLU, not {model.act}; go without it")
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
        self.decoders = {
            level: FastDecoder(decoder, level, kernel, to, features[level], features[level - 1])
            for level, decoder in ((level, getattr(model, f"decoder{level}")) for level in range(1, LEVELS + 1))
        }

    @property
    def convs(self) -> list[Conv]:
        """All of them."""
        inside = [conv for decoder in self.decoders.values() for conv in decoder.convs]
        return [conv for stage in self.encoder for conv in stage] + inside

    def in_strips(self, rows: int | None) -> "FastIFRNet":
        """The same network, worked off in strips of about `rows` rows of the frame: see strips.py."""
        if rows == self.rows:
            return self
        other = copy.copy(self)
        other.rows = rows
        return other

    def _rows(self, x: Tensor, halvings: int, pixels: float) -> int:
        """How many rows of x to work on at a time: on a CPU, all at once is no faster and takes more memory.

        halvings: between the frame and x; pixels: of x, to be worked on at a time.
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
        """See IFRNet.encode. The frames are kept as they are: `mean` of the result is 0."""
        check_frames(img0, img1, scale)
        mean = common_mean(img0, img1)
        size = tuple(round(side * scale) for side in img0.shape[-2:])
        small = (img0, img1) if scale == 1 else (resize(img0, size=size), resize(img1, size=size))
        x, features = self.kernel.prepare(*small, mean, self.dtype, self.colours), []
        for halvings, convs in enumerate(self.encoder):
            # Of four pixels there, a stage's convolutions make one.
            x = by_rows(partial(self._stage, convs), self._rows(x, halvings, 4 * STRIP), x)
            features.append(x)
        pyramid0, pyramid1 = zip(*(level.chunk(2) for level in features))
        return Pair(img0, img1, torch.zeros_like(mean), pyramid0, pyramid1, scale)

    @torch.inference_mode()
    def decode(self, pair: Pair, t: Tensor | float, flow: bool = False) -> Interpolation:
        """See IFRNet.decode. flow: whether the result holds, beside the frame, the last flow, of its scaled size."""
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
        # Strips of the frame must begin at whole rows of the answer.
        whole = (2 * growth) % 1 > 0
        rows = answer.shape[-2] if whole else self._rows(answer, 1, STRIP * pair.scale**2)
        return by_rows(lambda *x, top: blend(*x, top=round(growth * top)), rows, answer, coarse)
