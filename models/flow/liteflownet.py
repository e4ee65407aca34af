"""LiteFlowNet (Hui, Tang and Loy, CVPR 2018), the teacher of the IFRNet paper, as plain tensor operations.

A pyramid of features is made from each frame; from level 6 (1/32) up to level 2 (1/2) the flow is matched (a cost
volume of 7x7 displacements), refined to subpixels, and smoothed by a learnt filter. Flow inside is in units of 20
pixels of the full frame on every level. Module names are those of the public weights. The weights are for research
use (their authors' terms) and are not part of this project.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import resize
from ..weights import read_weights
from . import check

UNIT = 20  # full-resolution pixels that a flow of 1 inside the network stands for
REACH = 3  # displacements on each side of the cost volume
VOLUME = (2 * REACH + 1) ** 2
DIVISOR, SMALLEST = 32, 64  # five halvings; level 6 needs two pixels a side to have a sampling grid
MEANS = ((0.411618, 0.434631, 0.454253), (0.410782, 0.433645, 0.452793))  # frame one, frame two; B, G, R


class Level(NamedTuple):
    """channels: of the pyramid's features; matched, smoothed: after the projection in matching and subpixel, and in
    regularization; kernel: of the last convolution and of the smoothing; stride: of the correlation."""

    channels: int
    matched: int
    smoothed: int
    kernel: int
    stride: int


LEVELS = {
    2: Level(32, 64, 128, kernel=7, stride=2),
    3: Level(64, 64, 128, kernel=5, stride=2),
    4: Level(96, 96, 128, kernel=5, stride=1),
    5: Level(128, 128, 128, kernel=3, stride=1),
    6: Level(192, 192, 192, kernel=3, stride=1),
}
COARSEST = max(LEVELS)


def to_pixels(level: int) -> float:
    """Pixels of a level that a flow of 1 inside the network stands for."""
    return UNIT / 2 ** (level - 1)


def activation() -> nn.Module:
    return nn.LeakyReLU(0.1)


def convs(*channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolutions from one number of channels to the next, each activated; the first one may have a stride."""
    layers = []
    for inputs, outputs in zip(channels, channels[1:]):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), activation()]
        stride = 1
    return nn.Sequential(*layers)


def projection(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution where the number of channels changes."""
    return nn.Identity() if inputs == outputs else convs(inputs, outputs, kernel=1)


def flow_head(inputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(*convs(inputs, 128, 64, 32), nn.Conv2d(32, 2, kernel, 1, kernel // 2))


def doubling(channels: int) -> nn.Module:
    """Twice the size, every channel on its own."""
    return nn.ConvTranspose2d(channels, channels, 4, 2, 1, bias=False, groups=channels)


def sample(x: Tensor, flow: Tensor, align_corners: bool) -> Tensor:
    """Sample x at p + flow(p), bilinear, zero outside. x: (B, C, H, W); flow: (B, 2, H, W) in pixels of x.

    align_corners=True is exact. False is what the copy in the published IFRNet does: its grid spans pixel areas, but
    flow is normalised as for the grid of corners, so that it reaches W / (W - 1) and H / (H - 1) times as far.
    """
    axes = []
    for component, side, shape in ((0, x.shape[-1], (1, 1, -1)), (1, x.shape[-2], (1, -1, 1))):
        edge = 1 if align_corners else 1 - 1 / side
        centres = torch.linspace(-edge, edge, side, dtype=x.dtype, device=x.device).view(shape)
        axes.append(centres + flow[:, component] * (2 / (side - 1)))
    return F.grid_sample(x, torch.stack(axes, -1), "bilinear", "zeros", align_corners)


def correlation(x: Tensor, y: Tensor, stride: int = 1) -> Tensor:
    """Mean over channels of x at p times y at p + stride * d, for d in 7x7 (dx runs fastest); y is zero outside.

    x, y: (B, C, H, W). Returns (B, 49, ceil(H / stride), ceil(W / stride)).
    """
    x, y = x[..., ::stride, ::stride], y[..., ::stride, ::stride]
    height, width = x.shape[-2:]
    y = F.pad(y, [REACH] * 4)
    shifts = range(2 * REACH + 1)
    # One displacement at a time: all neighbourhoods at once would take 49 times the memory of y.
    return torch.stack([(x * y[..., j : j + height, i : i + width]).mean(1) for j in shifts for i in shifts], 1)


class Features(nn.Module):
    """Frame -> features of levels 1 to 6, each half the size of the one before."""

    def __init__(self):
        super().__init__()
        two, three, four, five, six = (level.channels for level in LEVELS.values())
        self.netOne = convs(3, 32, kernel=7)
        self.netTwo = convs(32, two, two, two, stride=2)
        self.netThr = convs(two, three, three, stride=2)
        self.netFou = convs(three, four, four, stride=2)
        self.netFiv = convs(four, five, stride=2)
        self.netSix = convs(five, six, stride=2)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        features = {}
        for level, block in enumerate(self.children(), start=1):
            x = features[level] = block(x)
        return features


class Matching(nn.Module):
    """The whole displacement: the coarser level's flow at twice its size, plus what the cost volume finds left."""

    def __init__(self, number: int, align_corners: bool):
        super().__init__()
        level = LEVELS[number]
        self.stride, self.to_pixels, self.align_corners = level.stride, to_pixels(number), align_corners
        self.netFeat = projection(level.channels, level.matched)
        self.netUpflow = None if number == COARSEST else doubling(2)
        self.netUpcorr = nn.Identity() if level.stride == 1 else doubling(VOLUME)
        self.activation = activation()
        self.netMain = flow_head(VOLUME, level.kernel)

    def forward(self, feature0: Tensor, feature1: Tensor, flow: Tensor | None) -> Tensor:
        feature0, feature1 = self.netFeat(feature0), self.netFeat(feature1)
        if self.netUpflow is not None:
            flow = self.netUpflow(flow)
            feature1 = sample(feature1, flow * self.to_pixels, self.align_corners)
        volume = self.activation(correlation(feature0, feature1, self.stride))
        step = self.netMain(self.netUpcorr(volume))
        return step if flow is None else flow + step


class Subpixel(nn.Module):
    """The flow refined to subpixels, from the features themselves."""

    def __init__(self, number: int, align_corners: bool):
        super().__init__()
        level = LEVELS[number]
        self.to_pixels, self.align_corners = to_pixels(number), align_corners
        self.netFeat = projection(level.channels, level.matched)
        self.netMain = flow_head(2 * level.matched + 2, level.kernel)

    def forward(self, feature0: Tensor, feature1: Tensor, flow: Tensor) -> Tensor:
        feature0, feature1 = self.netFeat(feature0), self.netFeat(feature1)
        feature1 = sample(feature1, flow * self.to_pixels, self.align_corners)
        return flow + self.netMain(torch.cat([feature0, feature1, flow], 1))


class Regularization(nn.Module):
    """Every flow vector becomes a mean of its neighbours, with weights predicted from the features and from the error
    that the flow leaves in the frames."""

    def __init__(self, number: int, align_corners: bool):
        super().__init__()
        level = LEVELS[number]
        kernel, self.kernel = level.kernel, level.kernel
        self.to_pixels, self.align_corners = to_pixels(number), align_corners
        self.netFeat = projection(level.channels, level.smoothed)
        self.netMain = convs(1 + 2 + level.smoothed, 128, 128, 64, 64, 32, 32)
        if kernel == 3:
            self.netDist = nn.Sequential(nn.Conv2d(32, kernel**2, kernel, 1, 1))
        else:
            self.netDist = nn.Sequential(
                nn.Conv2d(32, kernel**2, (kernel, 1), 1, (kernel // 2, 0)),
                nn.Conv2d(kernel**2, kernel**2, (1, kernel), 1, (0, kernel // 2)),
            )
        self.netScaleX = nn.Conv2d(kernel**2, 1, 1)
        self.netScaleY = nn.Conv2d(kernel**2, 1, 1)

    def forward(self, img0: Tensor, img1: Tensor, feature0: Tensor, flow: Tensor) -> Tensor:
        difference = img0 - sample(img1, flow * self.to_pixels, self.align_corners)
        error = difference.square().sum(1, keepdim=True).sqrt()
        known = [error, flow - flow.mean((2, 3), keepdim=True), self.netFeat(feature0)]
        distance = -self.netDist(self.netMain(torch.cat(known, 1))).square()
        weights = (distance - distance.amax(1, keepdim=True)).exp()
        smoothed = []
        for component, scale in zip(flow.split(1, 1), (self.netScaleX, self.netScaleY)):
            neighbours = F.unfold(component, self.kernel, padding=self.kernel // 2).view_as(weights)
            smoothed.append(scale(weights * neighbours) / weights.sum(1, keepdim=True))
        return torch.cat(smoothed, 1)


class LiteFlowNet(nn.Module):
    """The network with fresh weights; `load` gives it trained ones.

    align_corners: how frames and features are sampled (see `sample`); False, as in the published IFRNet, or True, as
    in the port's newest version and geometrically exact. rgb: feed R, G, B in place of B, G, R, as the published
    IFRNet's label script does; the weights were trained on B, G, R.
    """

    def __init__(self, align_corners: bool = False, rgb: bool = False):
        super().__init__()
        self.rgb = rgb
        self.netFeatures = Features()
        self.netMatching = nn.ModuleList(Matching(number, align_corners) for number in LEVELS)
        self.netSubpixel = nn.ModuleList(Subpixel(number, align_corners) for number in LEVELS)
        self.netRegularization = nn.ModuleList(Regularization(number, align_corners) for number in LEVELS)
        self.register_buffer("means", torch.tensor(MEANS).view(2, 1, 3, 1, 1), persistent=False)
        self.eval()

    @classmethod
    def load(cls, path: str | Path, align_corners: bool = False, rgb: bool = False) -> "LiteFlowNet":
        """The network with weights from a file: the public network-default.pytorch, or a state_dict of this class."""
        network = cls(align_corners, rgb)
        try:
            network.load_state_dict({key.replace("module", "net"): v for key, v in read_weights(path).items()})
        except RuntimeError as error:
            raise ValueError(f"{path}: not the weights of LiteFlowNet, such as network-default.pytorch") from error
        return network

    def forward(self, img0: Tensor, img1: Tensor) -> Tensor:
        """Flow (B, 2, H/2, W/2), in pixels of the full frames.

        img0, img1: B, G, R, (B, 3, H, W) in [0, 1], sides multiples of 32 from 64 up.
        """
        images0, images1 = (halvings(img - mean) for img, mean in zip((img0, img1), self.means))
        both = self.netFeatures(torch.cat([images0[1], images1[1]]))
        flow = None
        for number in sorted(LEVELS, reverse=True):
            i = number - min(LEVELS)
            feature0, feature1 = both[number].chunk(2)
            flow = self.netMatching[i](feature0, feature1, flow)
            flow = self.netSubpixel[i](feature0, feature1, flow)
            flow = self.netRegularization[i](images0[number], images1[number], feature0, flow)
        return UNIT * flow

    @torch.no_grad()
    def estimate(self, img0: Tensor, img1: Tensor) -> Tensor:
        """Flow (B, 2, H, W) in pixels: what img0 shows at p, img1 shows at p + flow(p).

        img0, img1: RGB, (B, 3, H, W) in [0, 1], any size: they are resized to one that the network takes. The
        result is on img0's device.
        """
        check(img0, img1)
        height, width = img0.shape[-2:]
        size = tuple(max(-(-side // DIVISOR) * DIVISOR, SMALLEST) for side in (height, width))
        frames = [resize(img.to(self.means), size=size) for img in (img0, img1)]
        flow = self(*(frames if self.rgb else [img.flip(1) for img in frames]))
        to_frame = flow.new_tensor([width / size[1], height / size[0]]).view(1, 2, 1, 1)
        return (resize(flow, size=(height, width)) * to_frame).to(img0.device)


def halvings(image: Tensor) -> dict[int, Tensor]:
    """An image at levels 1 to 6, each a bilinear halving of the one before."""
    images = {1: image}
    for level in LEVELS:
        images[level] = resize(images[level - 1], size=tuple(side // 2 for side in images[level - 1].shape[-2:]))
    return images
