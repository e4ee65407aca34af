"""A wider network that starts with the outputs of a trained one (Net2Net's wider layers; Chen et al., ICLR 2016).

Channels are copied, and the layers that read them divide their weights among the copies in unequal shares, so that
copies learn different things from the first step. The outputs are those of the narrow network, up to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ifrnet import LEVELS, VARIANTS, IFRNet


@torch.no_grad()
def widen(model: IFRNet, name: str, seed: int = 0) -> IFRNet:
    """A network `name` of VARIANTS with the activation and the outputs of `model`, float32, in training mode.

    ValueError for another name, and where it is narrower than `model` in any layer.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(VARIANTS)}")
    old, new = model.variant, VARIANTS[name]
    if any(a > b for a, b in zip((old.stem, old.side, *old.widths), (new.stem, new.side, *new.widths))):
        raise ValueError(f"{model.name} cannot be widened to {name}, which is narrower")
    with torch.device("cpu"):
        wide = IFRNet(new, model.act).float()  # whatever PyTorch's defaults
    random = torch.Generator().manual_seed(seed)

    def spread(channels: int, copies: int) -> Tensor:
        """The old channel that each of `copies` new ones copies: all of them in random order, then some again."""
        rounds = -(-copies // channels)
        return torch.cat([torch.randperm(channels, generator=random) for _ in range(rounds)])[:copies]

    def fill(layer: nn.Module, source: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """Set the weights of a convolution. inputs, outputs: the old channel of each new one."""
        swapped = isinstance(layer, nn.ConvTranspose2d)
        weight = source.weight.transpose(0, 1) if swapped else source.weight
        share = torch.rand(len(outputs), len(inputs), generator=random, dtype=torch.float32) + 0.1
        total = share.new_zeros(len(outputs), weight.shape[1]).index_add_(1, inputs, share)
        weight = weight[outputs][:, inputs] * (share / total[:, inputs])[..., None, None]
        border = (layer.kernel_size[0] - source.kernel_size[0]) // 2
        weight = F.pad(weight, [border] * 4)
        layer.weight.copy_(weight.transpose(0, 1) if swapped else weight)
        layer.bias.copy_(source.bias[outputs])

    def follow(activation: nn.Module, source: nn.Module, outputs: Tensor) -> None:
        """Set what an activation or normalisation stores per channel."""
        theirs = source.state_dict()
        for key, value in activation.state_dict().items():
            value.copy_(theirs[key][outputs] if value.ndim else theirs[key])

    def convolve(block: nn.Sequential, source: nn.Sequential, inputs: Tensor, outputs: Tensor) -> None:
        fill(block[0], source[0], inputs, outputs)
        for activation, theirs in zip(block[1:], source[1:]):
            follow(activation, theirs, outputs)

    def decode(level: int, inputs: Tensor, outputs: Tensor) -> None:
        block, source = (getattr(net, f"decoder{level}").convblock for net in (wide, model))
        main, side = (spread(theirs, ours) for theirs, ours in zip(source[1].split, block[1].split))
        both = torch.cat([main, source[1].split[0] + side])  # the side channels stay last
        convolve(block[0], source[0], inputs, both)
        for k in (1, 3):
            convolve(getattr(block[1], f"conv{k}"), getattr(source[1], f"conv{k}"), both, both)
            convolve(getattr(block[1], f"conv{k + 1}"), getattr(source[1], f"conv{k + 1}"), side, side)
        fill(block[1].conv5, source[1].conv5, both, both)
        follow(block[1].prelu, source[1].prelu, both)
        fill(block[2], source[2], both, outputs)

    with torch.device("cpu"):
        features = [torch.arange(3)]  # of the image, then of each level
        for ours, theirs in zip(wide.encoder.children(), model.encoder.children()):
            features.append(spread(theirs[1][0].out_channels, ours[1][0].out_channels))
            convolve(ours[0], theirs[0], features[-2], features[-1])
            convolve(ours[1], theirs[1], features[-1], features[-1])
        for level in range(LEVELS, 0, -1):
            feature, below = features[level], features[level - 1] if level > 1 else torch.arange(4)  # mask and residual
            parts = [feature, feature, torch.arange(1)] if level == LEVELS else [feature] * 3 + [torch.arange(4)]
            decode(level, together(parts), together([torch.arange(4), below]))
    return wide


def together(parts: list[Tensor]) -> Tensor:
    """The old channels of a concatenation, from those of its parts, each offset by all old channels before it."""
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + int(part.max()) + 1)
    return torch.cat([part + start for part, start in zip(parts, starts)])
