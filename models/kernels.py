"""The operations between the convolutions, each in one pass over memory: activation, a decoder's input, the last blend.

Three implementations: `Eager` is plain PyTorch, runs anywhere and is the reference; `Native` is native.c, compiled for
the CPU that it runs on (native.py); `Triton` is for GPUs (triton_kernels.py), with convolutions that include the
activation after them (cuda_convolution.py). `choose` picks one.

Tensors are (B, C, H, W) in channels-last order and dense; features have any floating type, flow and frames are float32.
Coordinates and sums are float32 throughout.
"""

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import winograd
from .layers import resize, warp
from .native import DEFINES, Library


def empty(like: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor, channels last, with the batch, size, device and, by default, type of `like`."""
    shape = (len(like), channels, *like.shape[-2:])
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def for_each(x: Tensor, count: int) -> Tensor:
    """x repeated along the batch to `count`, pair by pair; x itself if it has that many."""
    return x if len(x) == count else x.repeat_interleave(count // len(x), 0)


class Eager:
    """The kernels in plain PyTorch."""

    one_pass = False  # whether `blend` needs no memory but for the frame, and so no strips
    winograd: Library | None = None  # the library with winograd.py's convolutions

    def convolves(self, conv, x: Tensor) -> bool:
        """Whether these kernels compute a fast.Conv of x themselves, by a method `convolve` that it then calls."""
        return False

    def prepare(self, img0: Tensor, img1: Tensor, mean: Tensor, dtype: torch.dtype, channels: int = 3) -> Tensor:
        """Both frames minus `mean`, one after the other along the batch, (2 B, channels, H, W): channels beyond three
        are zero. mean: (B, 1, 1, 1)."""
        both = F.pad(torch.cat([img0 - mean, img1 - mean]), (0, 0, 0, 0, 0, channels - 3))
        return both.to(dtype, memory_format=torch.channels_last)

    def prelu(
        self,
        x: Tensor,
        slope: Tensor,
        bias: Tensor | None = None,
        add: Tensor | None = None,
        into: Tensor | None = None,
        tail: int = 0,
    ) -> Tensor:
        """PReLU of x (+ bias + add), written over x, or over the last channels of `into`. slope, bias: one per channel;
        slope is float32; bias is None on CPUs, where convolutions add it.

        Returns the tensor written to; with `tail`, a copy of its last `tail` channels instead.
        """
        whole = x if bias is None else x.float() + bias.float()[:, None, None]
        whole = whole if add is None else whole.float() + add.float()
        y = F.prelu(whole.float(), slope).to(x.dtype)
        out = x if into is None else into
        out[:, -x.shape[1] :] = y
        return y[:, -tail:].contiguous(memory_format=torch.channels_last) if tail else out

    def step(self, answer: Tensor, coarse: Tensor | None) -> Tensor:
        """The flow of a level, (B, 4, H, W): a decoder's step plus the flow of the coarser level, doubled, at twice its
        size.

        answer: (B, 4 or more, H, W), begins with the step; coarse: (B, 4, H/2, W/2), or None for the first step.
        """
        flow = answer[:, :4].float()
        flow = flow if coarse is None else flow + 2 * resize(coarse, 2.0)
        return flow.contiguous(memory_format=torch.channels_last)

    def join(self, answer: Tensor, flow: Tensor, f0: Tensor, f1: Tensor, width: int, top: int = 0) -> Tensor:
        """A decoder's input, `width` channels: the feature at t, the frames' features warped to t, the flow, zeros.

        answer: (B, 4 + C, H, W), except on CPUs also with more channels: a step of the flow, then the feature. flow:
        (B, 4, H, W). f0, f1: (P, C, H, W), B a multiple of P: pair by pair. answer and flow may be a strip of rows of
        the level that starts at `top`.
        """
        f0, f1 = (for_each(f, len(answer)) for f in (f0, f1))
        parts = [
            answer[:, 4 : 4 + f0.shape[1]],
            warp(f0, flow[:, :2], top),
            warp(f1, flow[:, 2:], top),
            flow.to(answer.dtype),
        ]
        used = 4 + 3 * f0.shape[1]
        return F.pad(torch.cat(parts, 1), (0, 0, 0, 0, 0, width - used)).contiguous(memory_format=torch.channels_last)

    def blend(self, answer: Tensor, coarse: Tensor, img0: Tensor, img1: Tensor, top: int = 0) -> Tensor:
        """The frame, (B, 3, H, W). img0, img1: (P, 3, H, W). All three are planar.

        answer: (B, 32, h/2, w/2), see `shuffle`; coarse: (B, 4, h/2, w/2). Where h and w are not those of the frames,
        flow, mask and residual are resized. Unless one_pass, answer and coarse may be a strip of rows: `top` is the row
        of the frame where it starts.
        """
        answer = shuffle(answer)
        flow, mask, residual = self.step(answer, coarse), torch.sigmoid(answer[:, 4:5].float()), answer[:, 5:].float()
        growth = img0.shape[-1] / flow.shape[-1]
        if growth != 1:
            size = (round(growth * flow.shape[-2]), img0.shape[-1])
            flow, mask, residual = (resize(x, size=size) for x in (growth * flow, mask, residual))
        img0, img1 = (for_each(x, len(flow)) for x in (img0, img1))
        frame = mask * warp(img0, flow[:, :2], top) + (1 - mask) * warp(img1, flow[:, 2:], top)
        return (frame + residual).clamp(0, 1)

    def flow(self, answer: Tensor, coarse: Tensor) -> Tensor:
        """The last flow, (B, 4, h, w): see blend."""
        return self.step(shuffle(answer, 4), coarse)


def shuffle(answer: Tensor, most: int | None = None) -> Tensor:
    """(B, 4 * C, H, W) -> (B, C, 2 * H, 2 * W): channels hold the four pixels of a 2x2 square one after the other.

    most: how many of the C channels to return.
    """
    squares = answer.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))[..., :most]
    return squares.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class Native(Eager):
    """The kernels of native.c. OSError if no compiler can build it."""

    one_pass = True

    def __init__(self, dtype: torch.dtype):
        library = Library(dtype)
        self.call = library.call
        self.winograd = library if winograd.pays(library, dtype) else None

    def prepare(self, img0, img1, mean, dtype, channels=3):
        assert channels == 3, "padding is for GPUs"
        batch, _, height, width = img0.shape
        shape, layout = (2 * batch, 3, height, width), torch.channels_last
        both = torch.empty(shape, dtype=dtype, device=img0.device, memory_format=layout)
        for img, out in ((img0, both[:batch]), (img1, both[batch:])):
            self.call("prepare", img.contiguous(), mean.contiguous(), out, batch, height * width)
        return both

    def prelu(self, x, slope, bias=None, add=None, into=None, tail=0):
        assert bias is None, "convolutions add it"
        pixels, channels = x.numel() // x.shape[1], x.shape[1]
        side = empty(x, tail) if tail else None
        out = x if into is None else into
        self.call("prelu", x, add, slope, out[:, -channels:], out.shape[1], side, tail, pixels, channels)
        return side if tail else out

    def step(self, answer, coarse):
        (batch, channels, height, width), flow = answer.shape, empty(answer, 4, dtype=torch.float32)
        answer = answer.contiguous(memory_format=torch.channels_last)
        if coarse is not None:
            coarse = coarse.contiguous(memory_format=torch.channels_last)
        self.call("step", answer, coarse, flow, batch, height, width, channels)
        return flow

    def join(self, answer, flow, f0, f1, width, top=0):
        batch, _, rows, columns = answer.shape
        pairs, channels, height, _ = f0.shape
        answer, flow = (x.contiguous(memory_format=torch.channels_last) for x in (answer, flow))
        out = empty(answer, width)
        sizes = (batch, batch // pairs, rows, top, height, columns, channels, width)
        self.call("join", answer, flow, f0, f1, out, *sizes)
        return out

    def blend(self, answer, coarse, img0, img1):
        (batch, _, *half), (height, width) = answer.shape, img0.shape[-2:]
        out = img0.new_empty(batch, 3, height, width)
        answer, coarse = (x.contiguous(memory_format=torch.channels_last) for x in (answer, coarse))
        img0, img1 = img0.contiguous(), img1.contiguous()
        self.call("blend", answer, coarse, img0, img1, out, batch, batch // len(img0), *half, height, width)
        return out


def choose(device: torch.device, dtype: torch.dtype, tell: bool = True) -> Eager:
    """The fastest kernels for a device. tell: whether to warn, once, if it should have others than plain PyTorch."""
    kernels, reason = _chosen(device, dtype)
    if tell and reason is not None:
        _say(reason)
    return kernels


@cache
def _chosen(device: torch.device, dtype: torch.dtype) -> tuple[Eager, str | None]:
    try:
        if device.type == "cuda":
            from .triton_kernels import Triton

            kernels = Triton()
            probe = torch.zeros(1, 4, 2, 2, dtype=torch.float32, device=device)
            kernels.step(probe, None)  # needs a compiler and a GPU that it knows
            return kernels, None
        if device.type == "cpu" and dtype in DEFINES:
            return Native(dtype), None
        return Eager(), None
    except Exception as error:  # Triton raises many kinds: no compiler, no headers, an unknown GPU
        return Eager(), str(error)


@cache
def _say(reason: str) -> None:
    warnings.warn(f"fast mode runs in plain PyTorch, which is slower: {reason}", stacklevel=3)
