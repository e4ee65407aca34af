"""The pieces that the network is built from: convolution with activation, residual block, warp, resize.

Flow is (dx, dy) in pixels of the tensor it belongs to; x grows to the right, y downwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = ("prelu", "gelu", "gelu+bn")


def activation(channels: int, kind: str) -> list[nn.Module]:
    """The modules that follow a convolution: "prelu" has one slope a channel; "gelu+bn" normalises before it bends."""
    if kind == "prelu":
        return [nn.PReLU(channels)]
    if kind == "gelu":
        return [nn.GELU()]
    if kind == "gelu+bn":
        return [nn.BatchNorm2d(channels), nn.GELU()]
    raise ValueError(f"unknown activation {kind!r}; choose one of {', '.join(ACTIVATIONS)}")


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: str = "prelu") -> nn.Sequential:
    """Convolution with bias and "same" padding, followed by the activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), *activation(outputs, act))


class ResBlock(nn.Module):
    """Five convolutions and a shortcut; every second one sees the last `side` channels alone (IFRNet, section 3.2)."""

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

    flow may also be some rows of the whole, those from `top` on; the result is then these rows. Coordinates and
    sampling are float32 whatever the type of x: half precision cannot tell neighbouring pixels apart beyond a width of
    about 2000. The result has the type of x.
    """
    height, width = x.shape[-2:]
    flow = flow.float()
    rows = torch.arange(top, top + flow.shape[-2], device=x.device, dtype=torch.float32).view(1, -1, 1)
    columns = torch.arange(width, device=x.device, dtype=torch.float32).view(1, 1, width)
    # grid_sample counts from -1 to 1 between the centres of the outermost pixels; a side of one pixel has no span.
    grid = torch.stack(
        [
            (columns + flow[:, 0]) * (2 / max(width - 1, 1)) - 1,
            (rows + flow[:, 1]) * (2 / max(height - 1, 1)) - 1,
        ],
        dim=-1,
    )
    return F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=True).to(x.dtype)


def resize(x: Tensor, factor: float | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """Bilinear resize by a factor or to (height, width), pixel areas aligned, no antialias."""
    return F.interpolate(x, size=size, scale_factor=factor, mode="bilinear", align_corners=False)
