"""One frame from estimates at several scales: at each place mostly the one on whose flow both input frames agree.

A network finds large motion only in small frames and fine detail only in large ones, and most frames have both. Where
a flow is right, both frames warped along it look alike; where it is wrong, they rarely do. The smaller scales together
take a third of the arithmetic at full size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import resize, warp

SCALES = (1.0, 0.5, 0.25, 0.125)  # the largest first
# Frames are compared at half their size: at a quarter, some sharp parts that hardly move came from smaller scales.
# Differences smoother than DETAIL pixels there are ignored, as lighting drifts between frames. The rest is averaged
# over a square of NEAR pixels.
SHRINK, DETAIL, NEAR = 2, 5, 25
POWER, LEAST = 4, 1e-3  # an estimate's weight is (doubt + LEAST)^-POWER: doubt far below LEAST makes no difference


def blend(frames: Sequence[Tensor], doubts: Sequence[Tensor]) -> Tensor:
    """The mean of `frames`, the estimates at every scale, (B, 3, H, W) in [0, 1], each weighted pixel by pixel by
    (doubt + LEAST)^-POWER. doubts: one for each, (B, 1, H, W). Not from the paper."""
    shares = (torch.stack(tuple(doubts)) + LEAST).log_().mul_(-POWER).softmax(0)
    frame = shares[0] * frames[0]
    for share, other in zip(shares[1:], frames[1:]):
        frame.addcmul_(share, other)
    return frame.clamp_(max=1)  # the shares add up to 1 but for rounding


def shrink(frame: Tensor) -> Tensor:
    """(B, 3, H, W), sides multiples of SHRINK, at the size at which frames are compared: means of SHRINK^2 pixels.

    Computed as sums of slices: avg_pool2d takes several times as long on CPUs where frames are small.
    """
    rows = sum(frame[..., k::SHRINK, :] for k in range(SHRINK))
    return sum(rows[..., k::SHRINK] for k in range(SHRINK)) / SHRINK**2


def doubt(flow: Tensor, img0: Tensor, img1: Tensor) -> Tensor:
    """How much two frames differ around a place when both are warped along a flow, (B, 1, H, W) from 0 up: the mean
    absolute difference of frames in [0, 1], without its smooth part.

    flow: (B, 4, h, w) as in Interpolation, with the frames' proportions. img0, img1: from `shrink`.
    """
    height, width = img0.shape[-2:]
    # Planar, which is faster to enlarge; first to full size, in which eager mode gives it.
    flow = resize_flow(flow.contiguous(), (SHRINK * height, SHRINK * width))
    flow = resize_flow(flow, (height, width))
    difference = warp(img0, flow[:, :2]) - warp(img1, flow[:, 2:])
    detail = (difference - mean_around(difference, DETAIL)).abs().mean(1, keepdim=True)
    return resize(mean_around(detail, NEAR), SHRINK)


def resize_flow(flow: Tensor, size: Sequence[int]) -> Tensor:
    """Flow, (B, C, H, W), resized to (height, width), in pixels of that size."""
    return flow if flow.shape[-2:] == size else resize(flow, size=size) * (size[-1] / flow.shape[-1])


def mean_around(x: Tensor, side: int) -> Tensor:
    """The mean of the square around each pixel, or of the part of it that lies inside. side: odd.

    Along one axis, then the other, over a view of all windows, which on CPUs is much faster than avg_pool2d.
    """
    half = side // 2
    for axis, padding in ((-2, (0, 0, half, half)), (-1, (half, half))):
        inside = F.pad(x.new_ones(x.shape[axis]), (half, half)).unfold(0, side, 1).sum(-1)
        total = F.pad(x, padding).unfold(axis, side, 1).sum(-1)
        x = total / (inside[:, None] if axis == -2 else inside)
    return x
