"""The single terms of the loss. Equation numbers are those of the IFRNet paper (arXiv 2205.14620)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def charbonnier(difference: Tensor, eps2: float = 1e-6) -> Tensor:
    """mean(sqrt(d^2 + eps^2)): L1 that is smooth at zero (equation 8)."""
    return (difference**2 + eps2).sqrt().mean()


def _signature(x: Tensor, patch: int) -> Tensor:
    """Every pixel's neighbours in a patch, zero-padded, minus the pixel, compressed to (-1, 1).

    x: (B, C, H, W) -> (B, C, patch^2, H, W).
    """
    batch, channels, height, width = x.shape
    neighbours = F.unfold(x, patch, padding=patch // 2).view(batch, channels, patch**2, height, width)
    v = neighbours - x.unsqueeze(2)
    return v / torch.sqrt(0.81 + v**2)  # 0.81 and 0.1 below: the soft census transform of UnFlow (Meister et al., 2018)


def _census_distance(x: Tensor, y: Tensor, patch: int) -> Tensor:
    """Mean soft Hamming distance of the census signatures of all channels, zero within patch//2 of the border."""
    q = (_signature(x, patch) - _signature(y, patch)) ** 2
    distance = (q / (0.1 + q)).mean((1, 2))
    border = patch // 2
    inner = distance[:, border:-border, border:-border]
    # The border counts as pixels without a distance: divide by all of them.
    return inner.sum() / distance.numel()


def census(prediction: Tensor, target: Tensor) -> Tensor:
    """Distance of the 7x7 census transforms of the grey frames (equation 8); the target takes no gradient."""
    return _census_distance(prediction.mean(1, keepdim=True), target.mean(1, keepdim=True).detach(), 7)


def geometry(feature: Tensor, target: Tensor) -> Tensor:
    """Distance of the 3x3 census transforms, every feature channel on its own (equation 12).

    feature, target: (B, C, h, w), the decoder's feature at t and the encoder's of the true frame. Both take gradients.
    """
    full = torch.promote_types(feature.dtype, torch.float32)  # half precision cannot hold the sums
    return _census_distance(feature.to(full), target.to(full), 3)


def flow_distillation(flows: tuple[Tensor, ...], teacher: Tensor, beta: float = 0.3) -> Tensor:
    """Task-oriented flow distillation (equations 9 to 11): follow the teacher where the final flow agrees with it.

    flows: fine to coarse, (B, 4, h, w), pixels of their level, the first of full size. teacher: (B, 4, H, W) in pixels,
    NaN where there is none: such pixels add nothing.
    """
    total = 0
    for pair in (slice(0, 2), slice(2, 4)):
        final, target = flows[0][:, pair].detach(), teacher[:, pair]
        known = target.isfinite().all(1, keepdim=True)
        target = torch.where(known, target, final)  # not a product with zero: NaN would survive it
        w = torch.exp(-beta * (final - target).norm(dim=1, keepdim=True))
        eps = 10 ** (-(10 * w - 1) / 3)
        for level in flows[1:]:
            factor = target.shape[-1] / level.shape[-1]
            size = target.shape[-2:]
            up = factor * F.interpolate(level[:, pair], size, mode="bilinear", align_corners=False)
            total = total + (known * ((up - target) ** 2 + eps**2) ** (w / 2)).mean()
    return total


def flow_error(flow: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of a level's flow, brought to full size, from exact flow: supervision, not distillation.

    flow: (B, 4, h, w) in pixels of its level. target: (B, 4, H, W) in pixels, NaN where there is none.
    """
    known = target.isfinite()
    factor = target.shape[-1] / flow.shape[-1]
    up = factor * F.interpolate(flow, target.shape[-2:], mode="bilinear", align_corners=False)
    return (up - torch.where(known, target, up.detach())).abs().mean()
