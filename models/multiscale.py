"""One frame of several, estimated at several scales: place by place, of that whose flow both frames agree about.

A network sees large motion in small frames alone and fine detail in large ones alone, and most frames hold both. Where
a flow is right, both frames moved along it look alike; where it is wrong, they rarely do. The smaller scales together
take a third of the arithmetic at full size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import resize, warp

SCALES = (1.0, 0.5, 0.25, 0.125)  # the largest first
# Frames are compared at half their size: at a fourth, some of what is sharp and hardly moves came from smaller scales.
# Brightness that changes over more than DETAIL pixels there is left out: light drifts between frames. The difference
# counts over NEAR pixels around.
SHRINK, DETAIL, NEAR = 2, 5, 25
POWER, LEAST = 4, 1e-3  # an estimate counts by the inverse of its doubt to this power; less doubt than LEAST is none


def blend(frames: Sequence[Tensor], doubts: Sequence[Tensor]) -> Tensor:
    """The frame, (B, 3, H, W): the mean of `frames`, as it was found at every scale, each weighted pixel by pixel by
    (doubt + LEAST)^-POWER. doubts: of each, (B, 1, H, W). Not from the paper."""
    shares = (torch.stack(tuple(doubts)) + LEAST).log_().mul_(-POWER).softmax(0)
    frame = shares[0] * frames[0]
    for share, other in zip(shares[1:], frames[1:]):
        frame.addcmul_(share, other)
    return frame


def shrink(frame: Tensor) -> Tensor:
    """(B, 3, H, W), sides multiples of SHRINK, at the size at which frames are compared: the means of its squares.

    As sums of slices: with avg_pool2d CPUs take several times as long where frames are small.
    """
    rows = sum(frame[..., k::SHRINK, :] for k in range(SHRINK))
    return sum(rows[..., k::SHRINK] for k in range(SHRINK)) / SHRINK**2


def doubt(flow: Tensor, img0: Tensor, img1: Tensor) -> Tensor:
    """How much two frames differ around a place when both are moved along a flow, (B, 1, H, W) from 0 up: the mean
    absolute difference of frames in [0, 1], without what is smooth in it.

    flow: (B, 4, h, w) as in Interpolation, with the frames' proportions. img0, img1: of `shrink`.
    """
    height, width = img0.shape[-2:]
    # Planar, which is quicker to enlarge; as large as eager mode answers.
    flow = resize_flow(flow.contiguous(), (SHRINK * height, SHRINK * width))
    flow = resize_flow(flow, (height, width))
    difference = warp(img0, flow[:, :2]) - warp(img1, flow[:, 2:])
    detail = (difference - mean_around(difference, DETAIL)).abs().mean(1, keepdim=True)
    return resize(mean_around(detail, NEAR), SHRINK)


def resize_flow(flow: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) to (height, width), in pixels there."""
    return flow if flow.shape[-2:] == size else resize(flow, size=size) * (size[-1] / flow.shape[-1])


def mean_around(x: Tensor, side: int) -> Tensor:
    """The mean of a square around each pixel, of what of it lies inside. side: odd.

    Along one axis, then the other, over a view of all windows, which CPUs sum much sooner than avg_pool2d does.
    """
    half = side // 2
    for axis, padding in ((-2, (0, 0, half, half)), (-1, (half, half))):
        inside = F.pad(x.new_ones(x.shape[axis]), (half, half)).unfold(0, side, 1).sum(-1)
        total = F.pad(x, padding).unfold(axis, side, 1).sum(-1)
        x = total / (inside[:, None] if axis == -2 else inside)
    return x
