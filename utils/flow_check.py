"""Where flow leaves the frame, where it contradicts itself, and how it looks.

Flow is (B, 2, H, W), (dx, dy) in pixels; masks are bool (B, 1, H, W).
"""

import math

import torch
from torch import Tensor

from models.layers import warp


def inside(flow: Tensor) -> Tensor:
    """The pixels that stay within the frame; false where flow is NaN."""
    height, width = flow.shape[-2:]
    x = flow[:, :1] + torch.arange(width, device=flow.device)
    y = flow[:, 1:] + torch.arange(height, device=flow.device)[:, None]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def consistent(forward: Tensor, backward: Tensor) -> Tensor:
    """The pixels that pass the forward-backward test of Sundaram, Brox and Keutzer (ECCV 2010), equation 5.

    Forward and back again must satisfy |w + w'|^2 < 0.01 (|w|^2 + |w'|^2) + 0.5; pixels hidden in the other frame fail,
    and so do wrong estimates, NaN, and what is read beside NaN on the way back.
    """
    back = warp(backward, forward)
    both = (forward**2).sum(1, keepdim=True) + (back**2).sum(1, keepdim=True)
    return ((forward + back) ** 2).sum(1, keepdim=True) < 0.01 * both + 0.5


def flow_colours(flow: Tensor, most: float) -> Tensor:
    """Flow as a picture: the hue is the direction, white stands still, full colour is `most` pixels; NaN is black."""
    known = flow.isfinite().all(1, keepdim=True)
    flow = torch.where(known, flow, 0.0)
    hue = torch.atan2(flow[:, 1:], flow[:, :1]) / (2 * math.pi) * 6
    strength = (flow.norm(dim=1, keepdim=True) / max(most, 1e-6)).clamp(max=1)
    # The closed form of HSV to RGB: each channel is a trapezoid over the hue, a third of the circle after the last.
    offsets = torch.tensor([5.0, 3.0, 1.0], device=flow.device).view(1, 3, 1, 1)
    k = torch.remainder(offsets + hue, 6)
    return known * (1 - strength * torch.minimum(k, 4 - k).clamp(0, 1))
