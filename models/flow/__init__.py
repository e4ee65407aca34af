"""Teachers: optical flow to train a frame interpolation network with, all behind one call.

    teacher = models.flow.build("raft_large", device="cuda")
    flow = teacher.estimate(img0, img1)

Frames are RGB, float, (B, 3, H, W) in [0, 1], any size; flow is float32, (B, 2, H, W), (dx, dy) in pixels: what img0
shows at p, img1 shows at p + flow(p). torchvision and OpenCV are imported only with the teacher that needs them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .. import CHECKPOINTS

__all__ = ["LITEFLOWNET", "TEACHERS", "Teacher", "build", "choose", "labels"]

LITEFLOWNET = CHECKPOINTS / "network-default.pytorch"


class Teacher(Protocol):
    def estimate(self, img0: Tensor, img1: Tensor) -> Tensor:
        """Flow (B, 2, H, W) in pixels from img0 to img1, both (B, 3, H, W) in [0, 1], on the device of img0. ValueError
        for frames that `check` refuses."""


def check(img0: Tensor, img1: Tensor) -> None:
    """ValueError unless both are frames of one shape as floats, (B, 3, H, W): of bytes, and of batches of two sizes,
    teachers would make wrong flow without a word."""
    if not (img0.is_floating_point() and img1.is_floating_point()):
        raise ValueError(f"frames of {img0.dtype} and {img1.dtype}; floats in [0, 1] are needed: divide bytes by 255")
    if img0.shape != img1.shape or img0.ndim != 4 or img0.shape[1] != 3:
        shapes = f"{tuple(img0.shape)} and {tuple(img1.shape)}"
        raise ValueError(f"frames of shapes {shapes}; both must have the same, (B, 3, H, W)")


def build(name: str, weights: str | Path | None = None, device: str | torch.device = "cpu", **options: bool) -> Teacher:
    """A teacher by name.

    name: one of TEACHERS. weights: a file; None is the teacher's own (RAFT's are downloaded from torchvision's source,
    LiteFlowNet's are expected at LITEFLOWNET). options: `align_corners` and `rgb`, see LiteFlowNet. ValueError for an
    unknown name, for options or weights that a teacher does not have, and for a file that does not fit;
    FileNotFoundError if there is no file.
    """
    if name not in TEACHERS:
        raise ValueError(f"unknown teacher {name!r}; choose one of {', '.join(TEACHERS)}")
    if any(options.values()) and name != "liteflownet":
        raise ValueError(f"{' and '.join(k for k, v in options.items() if v)}: for liteflownet alone, not for {name}")
    return TEACHERS[name](weights, torch.device(device), **{key: value for key, value in options.items() if value})


def choose() -> str:
    """The first of TEACHERS whose weights are on this machine already; dis, the last, needs none."""
    return next(name for name in TEACHERS if name == "dis" or _at_hand(name))


@torch.no_grad()  # not inference_mode: a loss keeps them for its backward pass
def labels(teacher: Teacher, img0: Tensor, imgt: Tensor, img1: Tensor) -> Tensor:
    """Flow t->0 and t->1, (B, 4, H, W) in pixels, as the loss takes it, from one call of the teacher.

    img0, imgt, img1: (B, 3, H, W) in [0, 1].
    """
    both = teacher.estimate(torch.cat([imgt, imgt]), torch.cat([img0, img1]))
    return torch.cat(both.chunk(2), 1)


def _at_hand(name: str) -> bool:
    if name == "liteflownet":
        return LITEFLOWNET.is_file()
    if not name.startswith("raft_"):
        return False  # one that was added is used where it is named
    try:
        from .raft import downloaded
    except ImportError:
        return False
    return downloaded(name.removeprefix("raft_"))


def _liteflownet(weights: str | Path | None, device: torch.device, **options: bool) -> Teacher:
    from .liteflownet import LiteFlowNet

    if weights is None and not LITEFLOWNET.is_file():
        raise FileNotFoundError(
            f"LiteFlowNet needs its weights, network-default.pytorch of github.com/sniklaus/pytorch-liteflownet "
            f"(research use): give --weights FILE, or put them into {LITEFLOWNET.parent.name}/"
        )
    return LiteFlowNet.load(weights or LITEFLOWNET, **options).to(device)


def _raft(size: str) -> Callable[..., Teacher]:
    def make(weights: str | Path | None, device: torch.device) -> Teacher:
        from .raft import RAFT

        return RAFT(size, weights).to(device)

    return make


def _dis(weights: str | Path | None, device: torch.device) -> Teacher:
    from .dis import DIS

    if weights is not None:
        raise ValueError(f"{weights}: dis has no weights; leave --weights out")
    return DIS()


# Best first; `choose` goes down this list.
TEACHERS: dict[str, Callable[..., Teacher]] = {
    "liteflownet": _liteflownet,
    "raft_large": _raft("large"),
    "raft_small": _raft("small"),
    "dis": _dis,
}
