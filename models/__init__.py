"""IFRNet for video frame interpolation: networks by name, weights by name or path, frames of any size.

    model = models.load("IFRNet_S")
    frames = models.Interpolator(model)(img0, img1, times=[0.25, 0.5, 0.75])

Frames are RGB, float, (3, H, W) in [0, 1].
"""

from pathlib import Path

import torch

from .ifrnet import VARIANTS, IFRNet, Interpolation
from .interpolator import Interpolator, Padding
from .layers import ACTIVATIONS
from .weights import read_weights

__all__ = ["ACTIVATIONS", "VARIANTS", "IFRNet", "Interpolation", "Interpolator", "Padding", "build", "load"]

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"


def build(name: str, activation: str = "prelu") -> IFRNet:
    """A network with fresh weights. name: one of VARIANTS; activation: one of ACTIVATIONS. ValueError otherwise."""
    if name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(VARIANTS)}")
    return IFRNet(VARIANTS[name], activation)


def checkpoint_path(checkpoint: str | Path) -> Path:
    """The path of a checkpoint, for a name of VARIANTS that of the shipped one. FileNotFoundError without a file."""
    if not str(checkpoint):
        raise FileNotFoundError("the checkpoint has no name, perhaps because a variable is not set; give a path")
    path = CHECKPOINTS / f"{checkpoint}.pth" if str(checkpoint) in VARIANTS else Path(checkpoint)
    if not path.is_file():
        shipped = [name for name in VARIANTS if (CHECKPOINTS / f"{name}.pth").is_file()]
        what = "no shipped weights for this network"
        if str(checkpoint) not in VARIANTS:
            what = "is a folder" if path.is_dir() else "no such checkpoint"
        raise FileNotFoundError(f"{checkpoint}: {what}; give {', or '.join(['a path', *shipped])}")
    return path


def load(checkpoint: str | Path, device: str | torch.device = "cpu") -> IFRNet:
    """A network with trained weights, float32, in evaluation mode.

    checkpoint: a name of VARIANTS for the weights in checkpoints/, or the path of a state_dict or a training
    checkpoint; published files load as they are. The variant is recognised by names and shapes, which must all match.
    Nothing in the file is executed. FileNotFoundError or ValueError, in one line, for a missing or unsuitable file.
    """
    path = checkpoint_path(checkpoint)
    state = read_weights(path)
    for name in VARIANTS:
        for kind in ACTIVATIONS:
            with torch.device("meta"):
                model = build(name, kind)
            if {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in state.items()}:
                model = model.to_empty(device="cpu").float()  # whatever PyTorch's defaults; draws no random numbers
                model.load_state_dict(state)
                return model.to(device).eval()
    names, way = ", ".join(VARIANTS), "others need a .py file, see models/external.py"
    raise ValueError(f"{path}: its {len(state)} tensors fit none of {names}; {way}")
