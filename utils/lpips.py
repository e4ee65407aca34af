"""LPIPS, the learned perceptual distance (Zhang et al., CVPR 2018), version 0.1, with weights from files.

The network is torchvision's AlexNet or VGG16; its weights and those of the linear layers are not part of this project.
Known names are those of torchvision (features.0.weight ..), of the lpips package's linear layers
(lin0.model.1.weight ..) and of a whole lpips.LPIPS's state_dict (net.slice1.0.weight ..).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.weights import check_finite, read_checkpoint
from utils.metrics import check_images

# For inputs in [-1, 1], from the published implementation: ImageNet's mean and standard deviation, rescaled.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Backbone(NamedTuple):
    """taps: indices of torchvision's `features` after which a layer is compared; channels: of those layers; least: the
    smallest side of a frame that its poolings do not reduce to nothing."""

    taps: tuple[int, ...]
    channels: tuple[int, ...]
    least: int


BACKBONES = {
    "alexnet": Backbone((1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31),
    "vgg16": Backbone((3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
}


class LPIPS(nn.Module):
    """(prediction, target), float32 (B, 3, H, W) in [0, 1] -> distance (B,), 0 for equal images.

    paths: one file with everything, or the backbone's and the linear layers', which tell which network it is.
    FileNotFoundError for a file that is not there; ValueError without any, and where the files together are not those
    weights, or hold NaN or infinity; in a call, for images too small for the network, and those that no metric takes.
    """

    def __init__(self, paths: Sequence[Path] | None):
        import torchvision

        super().__init__()
        if not paths:
            raise ValueError(
                "LPIPS needs weights: --lpips_weights BACKBONE LINEAR, torchvision's AlexNet or VGG16 and the lpips "
                "package's linear layers (lpips/weights/v0.1/alex.pth or vgg.pth there)"
            )
        state: dict[str, Tensor] = {}
        for path in paths:
            state |= _read(path)
        lines = [state.get(f"lin{k}.model.1.weight", state.get(f"lins.{k}.model.1.weight")) for k in range(5)]
        channels = tuple(line.numel() if isinstance(line, Tensor) else 0 for line in lines)
        names = [name for name, backbone in BACKBONES.items() if backbone.channels == channels]
        where = ", ".join(map(str, paths))
        if not names:
            raise ValueError(f"{where}: no linear layers of LPIPS (lin0.model.1.weight .. lin4) for AlexNet or VGG16")
        self.taps, _, self.least = BACKBONES[names[0]]
        with torch.device("meta"):  # without the memory and the random numbers of weights that are replaced at once
            network = getattr(torchvision.models, names[0])(weights=None)
        self.features = network.features[: self.taps[-1] + 1]
        weights = {}
        for name in self.features.state_dict():
            known = re.compile(rf"(features|net\.slice\d)\.{re.escape(name)}")
            found = [value for key, value in state.items() if known.fullmatch(key)]
            if not found:
                raise ValueError(f"{where}: lacks features.{name} of {names[0]}; name the backbone's file too")
            weights[name] = found[0]
        try:
            self.features.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{where}: the backbone is not {names[0]}, which the linear layers are for") from error
        for k, line in enumerate(lines):
            self.register_buffer(f"line{k}", line.view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.float().eval().requires_grad_(False)  # files may hold weights of 16 bits

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_images(prediction, target)
        height, width = target.shape[-2:]
        if min(height, width) < self.least:
            raise ValueError(f"an image of {width}x{height} is too small for LPIPS; sides must be {self.least} or more")
        total = 0
        x, y = ((2 * image - 1 - self.shift) / self.scale for image in (prediction, target))
        for index, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if index in self.taps:
                line = getattr(self, f"line{self.taps.index(index)}")
                total = total + (line * (_unit(x) - _unit(y)) ** 2).sum(1).mean((1, 2))
        return total


def _unit(x: Tensor) -> Tensor:
    """Every pixel's features, scaled to unit length."""
    return x / (x.norm(dim=1, keepdim=True) + 1e-10)


def _read(path: Path) -> dict[str, Tensor]:
    state = read_checkpoint(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds no weights by name")
    check_finite(path, state)
    return state
