"""One frame of several, estimated at several scales: place by place, of that whose flow both frames agree about.

A network sees large motion in small frames alone and fine detail in large ones alone, and most frames hold both. Where
a flow is right, both frames moved along it look alike; where it is wrong, they rarely do. The smaller scales together
take a third of the arithmetic at full size; enlarging what they answer takes more of the time in fast mode.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import resize, warp

SCALES = (1.0, 0.5, 0.25)  # the largest first
# Frames are compared at half their size: at a fourth, some of what is sharp and hardly moves came from smaller scales.
# Brightness that changes over more than DETAIL pixels there is left out: light drifts between frames. The difference
# counts over NEAR pixels around.
SHRINK, DETAIL, NEAR = 2, 5, 25
POWER, LEAST = 4, 1e-3  # an estimate counts by the inverse of its doubt to this power; less doubt than LEAST is none


def blend(frames: Sequence[Tensor], doubts: Sequence[Tensor]) -> Tensor:
    """The frame, (B, 3, H, W). frames: as it was found at every scale; doubts: of each, (B, 1, H, W)."""
    shares = (-POWER * (torch.stack(tuple(doubts)) + LEAST).log()).softmax(0)
    return sum(share * frame for share, frame in zip(shares, frames))


def doubt(flow: Tensor, img0: Tensor, img1: Tensor) -> Tensor:
    """How much two frames differ around a place when both are moved along a flow, (B, 1, H, W) from 0 up.

    flow: (B, 4, h, w) as in Interpolation, with the frames' proportions. img0, img1: (B, 3, H, W) in [0, 1], sides
    multiples of SHRINK.
    """
    flow = resize_flow(flow, img0.shape[-2:])  # as large as eager mode answers
    img0, img1 = (F.avg_pool2d(img, SHRINK) for img in (img0, img1))
    flow = resize_flow(flow, img0.shape[-2:])
    difference = warp(img0, flow[:, :2]) - warp(img1, flow[:, 2:])
    detail = (difference - mean_around(difference, DETAIL)).abs().mean(1, keepdim=True)
    return resize(mean_around(detail, NEAR), SHRINK)


def resize_flow(flow: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) to (height, width), in pixels there."""
    return flow if flow.shape[-2:] == size else resize(flow, size=size) * (size[-1] / flow.shape[-1])


def mean_around(x: Tensor, side: int) -> Tensor:
    """The mean of a square around each pixel, of what of it lies inside. side: odd."""
    half = side // 2
    x = F.avg_pool2d(x, (side, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, side), 1, (0, half), count_include_pad=False)
