"""RAFT (Teed and Deng, ECCV 2020): torchvision's networks and weights, for frames of any size."""

import hashlib
from http.client import HTTPException
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import optical_flow

from ..weights import read_weights
from . import check

SIZES = {
    "large": (optical_flow.raft_large, optical_flow.Raft_Large_Weights.DEFAULT),
    "small": (optical_flow.raft_small, optical_flow.Raft_Small_Weights.DEFAULT),
}
DIVISOR, SMALLEST = 8, 128  # torchvision refuses other sides, and smaller ones, whose correlation pyramid would vanish
UPDATES = 12  # torchvision's default, under which its published errors were measured


class RAFT(nn.Module):
    """RAFT, "large" or "small".

    weights: a state_dict of torchvision's network; None downloads torchvision's own (once, into torch.hub's folder).
    OSError where they cannot be fetched; ValueError for a file that is damaged or holds something else.
    """

    def __init__(self, size: str = "large", weights: str | Path | None = None):
        super().__init__()
        weights = weights or published(size)
        self.network = SIZES[size][0]()
        try:
            self.network.load_state_dict(read_weights(weights))
        except RuntimeError as error:
            raise ValueError(f"{weights}: not the weights of torchvision's raft_{size}") from error
        self.eval()

    @torch.no_grad()
    def estimate(self, img0: Tensor, img1: Tensor) -> Tensor:
        """Flow (B, 2, H, W) in pixels: what img0 shows at p, img1 shows at p + flow(p).

        img0, img1: RGB, (B, 3, H, W) in [0, 1], any size. The result lies on img0's device.
        """
        check(img0, img1)
        height, width = img0.shape[-2:]
        left, right = margins(width)
        top, bottom = margins(height)
        device = next(self.parameters()).device
        frames = [
            F.pad(2 * img.to(device, torch.float32) - 1, (left, right, top, bottom), mode="replicate")
            for img in (img0, img1)
        ]
        flow = self.network(*frames, num_flow_updates=UPDATES)[-1]
        return flow[..., top : top + height, left : left + width].contiguous().to(img0.device)


def margins(side: int) -> tuple[int, int]:
    """Pixels to add before and after, so that a side fits the network."""
    more = max(-(-side // DIVISOR) * DIVISOR, SMALLEST) - side
    return more // 2, more - more // 2


def published(size: str) -> Path:
    """The file of torchvision's weights, downloaded if it is missing; its name contains its checksum."""
    path, url = _path(size), SIZES[size][1].url
    checksum = path.stem.rpartition("-")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), checksum)
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another checksum
            raise OSError(
                f"{url}: RAFT's weights could not be fetched ({getattr(error, 'reason', error)}); get the file "
                "elsewhere and give --weights FILE, or use --teacher dis"
            ) from error
    elif not hashlib.sha256(path.read_bytes()).hexdigest().startswith(checksum):
        raise ValueError(f"{path}: not RAFT's weights as published; remove it, or give --weights FILE")
    return path


def downloaded(size: str) -> bool:
    """Whether torchvision's weights are on this machine already."""
    return _path(size).is_file()


def _path(size: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(SIZES[size][1].url).name
