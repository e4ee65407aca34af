"""The pieces that the network is built from: convolution with activation, residual block, warp, resize.

Flow is (dx, dy) in pixels of the tensor it belongs to; x grows to the right, y downwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import native

ACTIVATIONS = ("prelu", "gelu", "gelu+bn")


class PReLU(nn.PReLU):
    """nn.PReLU, one slope per channel; on the CPU its gradients are computed in one pass over channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        trained = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        library = native.library(x) if trained else None
        if library and x.ndim == 4 and x.stride(1) == 1 and x.shape[1] == self.num_parameters:
            return _NativePReLU.apply(x, self.weight.float(), library)
        return super().forward(x)


class _NativePReLU(torch.autograd.Function):
    """PReLU by native.c. Slopes, and the terms summed for their gradient, are float32 whatever the type of x."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: Tensor, library: native.Library) -> Tensor:
        x, slope = x.contiguous(memory_format=torch.channels_last), slope.contiguous()
        out, channels = torch.empty_like(x), x.shape[1]
        library.call("prelu", x, None, slope, out, channels, None, 0, x.numel() // channels, channels)
        ctx.save_for_backward(x, slope)
        ctx.library = library
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, above: Tensor):
        (x, slope), (batch, channels, height, width) = ctx.saved_tensors, above.shape
        along = 3 if width > 1 else 2  # a step along a side of one pixel may be any number
        if above.stride(2) != width * above.stride(along):  # a slice of wider rows
            above = above.contiguous(memory_format=torch.channels_last)
        strides = (above.stride(0), above.stride(along), above.stride(1))
        gradient, of_slope = torch.empty_like(x), torch.empty_like(slope)
        sizes = (batch, height * width, channels)
        ctx.library.call("prelu_backward", x, above, *strides, slope, gradient, of_slope, *sizes)
        return gradient, of_slope, None


def activation(channels: int, kind: str) -> list[nn.Module]:
    """The modules that follow a convolution: "prelu" has one slope per channel; "gelu+bn" normalises before the GELU.
    ValueError for another kind."""
    if kind == "prelu":
        return [PReLU(channels)]
    if kind == "gelu":
        return [nn.GELU()]
    if kind == "gelu+bn":
        return [nn.BatchNorm2d(channels), nn.GELU()]
    raise ValueError(f"unknown activation {kind!r}; choose one of {', '.join(ACTIVATIONS)}")


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: str = "prelu") -> nn.Sequential:
    """Convolution with bias and "same" padding, followed by the activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), *activation(outputs, act))


class ResBlock(nn.Module):
    """Five convolutions and a shortcut; every second one sees only the last `side` channels (IFRNet, section 3.2)."""

    def __init__(self, width: int, side: int, act: str = "prelu"):
        super().__init__()
        self.split = (width - side, side)
        self.conv1 = conv(width, width, act=act)
        self.conv2 = conv(side, side, act=act)
        self.conv3 = conv(width, width, act=act)
        self.conv4 = conv(side, side, act=act)
        self.conv5 = nn.Conv2d(width, width, 3, 1, 1)
        self.prelu = activation(width, act)[-1]

    def forward(self, x: Tensor) -> Tensor:
        main, side = self.conv1(x).split(self.split, 1)
        main, side = self.conv3(torch.cat([main, self.conv2(side)], 1)).split(self.split, 1)
        return self.prelu(x + self.conv5(torch.cat([main, self.conv4(side)], 1)))


def warp(x: Tensor, flow: Tensor, top: int = 0) -> Tensor:
    """Sample x at p + flow(p), bilinear, borders clamped. x: (B, C, H, W); flow: (B, 2, H, W), (dx, dy) in pixels of x.

    flow may also be a strip of rows that starts at `top`; the result is then that strip. Coordinates and sampling are
    float32 whatever the type of x: half precision cannot tell neighbouring pixels apart beyond a width of about 2000.
    The result has the type of x.
    """
    height, width = x.shape[-2:]
    flow = flow.float()
    rows = torch.arange(top, top + flow.shape[-2], device=x.device, dtype=torch.float32).view(1, -1, 1)
    columns = torch.arange(width, device=x.device, dtype=torch.float32).view(1, 1, width)
    # grid_sample's -1 and 1 are the centres of the outermost pixels, which coincide where a side is one pixel long.
    grid = torch.stack(
        [
            (columns + flow[:, 0]) * (2 / max(width - 1, 1)) - 1,
            (rows + flow[:, 1]) * (2 / max(height - 1, 1)) - 1,
        ],
        dim=-1,
    )
    return F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=True).to(x.dtype)


def resize(x: Tensor, factor: float | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """Bilinear resize of (B, C, H, W), either by a factor or to (height, width): pixel areas aligned, no antialiasing.

    Values are not scaled: flow in pixels must be multiplied by the factor as well.
    """
    return F.interpolate(x, size=size, scale_factor=factor, mode="bilinear", align_corners=False)
