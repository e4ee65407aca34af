"""The network in strips of rows: the same numbers in a fraction of the memory.

Tiles with an overlap and blended seams change what the network sees: the frame's mean, and motion across a tile's
border. Here instead each stack of convolutions is computed a few rows at a time and reads as many rows around them
as its kernels reach. A strip then equals these rows of the whole frame, up to rounding: there is no seam to blend.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .ifrnet import IFRNet

REACH = 8  # rows: a decoder's convolutions reach 7, those of a stage of the encoder 5 at most


def by_rows(function: Callable[..., Tensor], rows: int, *inputs: Tensor) -> Tensor:
    """function(*inputs, top=0), computed for `rows` rows at a time.

    The size of the function's result may be a fixed multiple of its inputs' (half, equal, double), and each row of it
    may depend on REACH rows around; `top` is the row that its inputs begin with. rows: an even number.
    """
    height, result = inputs[0].shape[-2], None
    if rows >= height:
        return function(*inputs, top=0)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        top, bottom = max(start - REACH, 0), min(stop + REACH, height)
        strip = function(*(x[..., top:bottom, :] for x in inputs), top=top)
        total, first, end, skipped = (n * strip.shape[-2] // (bottom - top) for n in (height, start, stop, start - top))
        if result is None:
            shape = (*strip.shape[:-2], total, strip.shape[-1])
            result = torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=order(strip))
        result[..., first:end, :] = strip[..., skipped : skipped + end - first, :]
    return result


def order(x: Tensor) -> torch.memory_format:
    """The memory format of a dense tensor."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def even(rows: int) -> int:
    """The number of rows made valid for a strip: even, and at least REACH."""
    return max(rows // 2 * 2, REACH)


class StripEncoder(nn.Module):
    def __init__(self, encoder: nn.Module, rows: int):
        super().__init__()
        self.stages, self.rows = nn.ModuleList(encoder.children()), rows

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        features = []
        for halvings, stage in enumerate(self.stages):
            img = by_rows(lambda x, top, stage=stage: stage(x), even(self.rows >> halvings), img)
            features.append(img)
        return tuple(features)


class StripIFRNet(IFRNet):
    """A network that shares the weights of another and computes strips of about `rows` rows of the frame."""

    def __init__(self, model: IFRNet, rows: int):
        nn.Module.__init__(self)
        for name, child in model.named_children():
            self.add_module(name, child)
        self.encoder, self.rows = StripEncoder(model.encoder, rows), rows

    def refine(self, level: int, feature: Tensor, flow: Tensor, f0: Tensor, f1: Tensor) -> Tensor:
        refine = partial(super().refine, level, f0=f0, f1=f1)
        return by_rows(refine, even(self.rows >> level), feature, flow)

    def blend(self, flow: Tensor, mask: Tensor, rest: Tensor, img0: Tensor, img1: Tensor) -> Tensor:
        return by_rows(partial(super().blend, img0=img0, img1=img1), even(self.rows), flow, mask, rest)
