"""The terms of the loss. Equation numbers are those of the IFRNet paper (arXiv 2205.14620)."""

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models import native

EPS2, BETA = 1e-6, 0.3  # the paper's eps^2 of equation 8, and beta of the distillation's weight


def charbonnier(difference: Tensor) -> Tensor:
    """mean(sqrt(d^2 + eps^2)): L1 that is smooth at zero (equation 8)."""
    return (difference**2 + EPS2).sqrt().mean()


def log_error(prediction: Tensor, target: Tensor) -> Tensor:
    """10 log10 of each frame's mean squared error, averaged: the negative of the PSNR that benchmarks report, in dB.

    Unlike in equation 8, a tenfold smaller error counts the same in a frame that is nearly right as in one that is not.
    Errors far below 1e-6 (60 dB) make no difference.
    """
    return 10 * ((prediction - target).square().flatten(1).mean(1) + 1e-6).log10().mean()


def _census_distance(x: Tensor, y: Tensor, patch: int) -> Tensor:
    """Mean soft Hamming distance of the census signatures of all channels, zero within patch//2 of the border.

    A pixel's signature: all neighbours in its patch minus the pixel, compressed to (-1, 1). ValueError where the shapes
    differ.
    """
    if x.shape != y.shape:
        raise ValueError(f"tensors to compare have different shapes: {tuple(x.shape)} and {tuple(y.shape)}")
    full = torch.promote_types(x.dtype, torch.float32)  # half precision cannot hold the sums
    # Pixels on the border have distance 0 and count in the mean.
    return _CensusSum.apply(x.to(full), y.to(full), patch) / (x.numel() * patch**2)


class _CensusSum(torch.autograd.Function):
    """The sum of the distances, neighbour by neighbour: no tensor is patch^2 times as large as the frame.

    The distance of a pixel and its neighbour is the same seen from either, so each pair is computed once. The gradient
    is computed along with the sum, from the same values. With v and u the pair's differences in x and y, sig(v) =
    v / sqrt(0.81 + v^2) and s = sig(v) - sig(u), the distance is s^2 / (0.1 + s^2) and its derivative in v
    0.2 s / (0.1 + s^2)^2 * 0.81 / (0.81 + v^2)^1.5.
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, patch: int) -> Tensor:
        way, needed = _census_sum, ctx.needs_input_grad[:2]
        if native.library(x) is not None:
            way = _native_census_sum
        elif x.is_cuda and x.dtype == torch.float32 and not torch.compiler.is_compiling():
            way = _gpu_census_sum()
        total, gradients = way(x, y, patch, needed)
        ctx.save_for_backward(*gradients)  # which frees them with the rest of the graph
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, above: Tensor):
        return *(None if gradient is None else above * gradient for gradient in ctx.saved_tensors), None


def _inner(x: Tensor, patch: int) -> Tensor:
    """(H, W): 1 where a pixel's distance counts, 0 within patch//2 of the border."""
    (height, width), border = x.shape[-2:], patch // 2
    inner = x.new_zeros(height, width)
    inner[border : height - border, border : width - border] = 1
    return inner


def _census_sum(x: Tensor, y: Tensor, patch: int, needed: tuple[bool, ...]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum, and its gradients in x and in y where they are needed."""
    (height, width), border = x.shape[-2:], patch // 2
    inner = _inner(x, patch)
    total = x.new_zeros(())
    gradients = [torch.zeros_like(z) if n else None for z, n in zip((x, y), needed)]
    across = min(border, width - 1)  # beyond, no pixel of a frame smaller than a patch has a neighbour
    for dy in range(min(border, height - 1) + 1):
        for dx in range(-across if dy else 1, across + 1):
            a = ..., slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0))
            b = ..., slice(dy, None), slice(max(dx, 0), width + min(dx, 0))
            counted = inner[a] + inner[b]
            v, u = x[b] - x[a], y[b] - y[a]
            # 0.81 and 0.1: the soft census transform of UnFlow (Meister et al., 2018)
            scale_v, scale_u = (v * v).add_(0.81).rsqrt_(), (u * u).add_(0.81).rsqrt_()
            s = v.mul_(scale_v).sub_(u.mul_(scale_u))
            square = s * s
            below = (square + 0.1).reciprocal_()
            total += square.mul_(below).mul_(counted).sum()
            if any(needed):
                common = s.mul_(below).mul_(below).mul_(counted).mul_(0.2 * 0.81)
                for gradient, scale, sign in zip(gradients, (scale_v, scale_u), (1, -1)):
                    if gradient is not None:
                        part = (scale * scale).mul_(scale).mul_(common)
                        gradient[b].add_(part, alpha=sign)
                        gradient[a].sub_(part, alpha=sign)
    return total, gradients


@cache
def _gpu_census_sum() -> Callable:
    """The same on GPUs as one kernel in place of hundreds; `_census_sum` itself where there is no compiler for it."""
    try:
        from models.triton_kernels import census

        probe = torch.zeros(1, 1, 4, 4, dtype=torch.float32, device="cuda")
        census(probe, probe, 3, (True, True))
    except Exception as error:  # Triton raises many kinds
        warnings.warn(f"training continues without its own GPU kernel, which is slower: {error}", stacklevel=2)
        return _census_sum
    return census


def _native_census_sum(
    x: Tensor, y: Tensor, patch: int, needed: tuple[bool, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """The same on the CPU, all neighbours of a few pixels at a time, so that nothing is fetched from memory twice."""
    (batch, channels, height, width), planar = x.shape, x.stride(1) != 1
    layout = torch.contiguous_format if planar else torch.channels_last
    x, y = (z.contiguous(memory_format=layout) for z in (x, y))
    planes, side = (batch * channels, 1) if planar else (batch, channels)
    inner = _inner(x, patch).repeat_interleave(side)
    gradients = [torch.zeros_like(z) if n else None for z, n in zip((x, y), needed)]
    sums = x.new_empty(planes, dtype=torch.float64)
    native.library(x).call("census", x, y, inner, *gradients, sums, planes, height, width, side, patch // 2)
    return sums.sum().to(x.dtype), gradients


def census(prediction: Tensor, target: Tensor) -> Tensor:
    """Distance of the 7x7 census transforms of the grey frames (equation 8); the target takes no gradient."""
    return _census_distance(prediction.mean(1, keepdim=True), target.mean(1, keepdim=True).detach(), 7)


def geometry(feature: Tensor, target: Tensor) -> Tensor:
    """Distance of the 3x3 census transforms, every feature channel on its own (equation 12).

    feature, target: (B, C, h, w), the decoder's feature at t and the encoder's of the true frame. Both take gradients.
    """
    return _census_distance(feature, target, 3)


def full_size(flow: Tensor, size: torch.Size) -> Tensor:
    """Flow in pixels of its level, (B, 4, h, w), resized to `size` and to pixels of it: planar, (B, 4, H, W).

    Planar flow of that size is returned as it is, so that terms that need all levels at full size can share them.
    """
    flow = flow.contiguous()  # norms and sums over channels-last flow take several times as long
    if flow.shape[-2:] == size:
        return flow
    return F.interpolate(size[-1] / flow.shape[-1] * flow, size, mode="bilinear", align_corners=False)


def flow_distillation(flows: tuple[Tensor, ...], teacher: Tensor) -> Tensor:
    """Task-oriented flow distillation (equations 9 to 11): follow the teacher where the final flow agrees with it.

    flows: fine to coarse, (B, 4, h, w), pixels of their level, the first of full size. teacher: (B, 4, H, W) in pixels,
    NaN where there is none: such pixels add nothing.
    """
    size = teacher.shape[-2:]
    final, target = flows[0].detach().contiguous(), teacher.contiguous()
    known = target.isfinite()
    known = both(known[:, 0::2] & known[:, 1::2])
    target = torch.where(known, target, final)  # not a product with zero: NaN would survive it
    difference = final - target
    w = torch.exp(-BETA * torch.hypot(difference[:, 0::2], difference[:, 1::2]))
    eps2 = both(10 ** ((1 - 10 * w) * (2 / 3)))  # the square of equation 11's eps; its exponent is half of w
    half, known = both(w / 2), known.to(w.dtype)
    total = 0
    for level in flows[1:]:
        total = total + _Robust.apply(full_size(level, size) - target, half, eps2, known)
    return 2 * total  # the flows to both frames are two terms, each a mean of its own


class _Robust(torch.autograd.Function):
    """mean(known (d^2 + eps2)^half) with a gradient for d only, which is computed along with it in the same memory.

    A power takes longer, and differentiated by PyTorch still longer; eps keeps the logarithm finite.
    """

    @staticmethod
    def forward(ctx, d: Tensor, half: Tensor, eps2: Tensor, known: Tensor) -> Tensor:
        base = (d * d).add_(eps2)
        distance = base.log().mul_(half).exp_().mul_(known)
        mean = distance.mean()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(distance.mul_(half).mul_(d).div_(base).mul_(2 / d.numel()))
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx, above: Tensor):
        return above * ctx.saved_tensors[0], None, None, None


def both(x: Tensor) -> Tensor:
    """A value for each flow, (B, 2, H, W), repeated for both of its components, (B, 4, H, W)."""
    return x.repeat_interleave(2, 1)


def flow_error(flows: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Mean absolute difference of the flow, resized to full size, from exact flow: supervision, not distillation.

    flows: (B, 4, h, w) in pixels of their level; their means are added up. target: (B, 4, H, W) in pixels, NaN where
    there is none.
    """
    target = target.contiguous()
    unknown = ~target.isfinite()
    target = target.masked_fill(unknown, 0)
    return sum(F.l1_loss(full_size(flow, target.shape[-2:]).masked_fill(unknown, 0), target) for flow in flows)
