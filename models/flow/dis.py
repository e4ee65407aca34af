"""Dense inverse search (Kroeger et al., ECCV 2016), OpenCV's: optical flow without weights and without a GPU."""

import cv2
import numpy as np
import torch
from torch import Tensor

from . import check

SMALLEST = 32  # OpenCV 5.0 reads past the end of some smaller frames (16x300 among them) and crashes


class DIS:
    """OpenCV's DIS, medium preset, spatial propagation on, on grey 8-bit frames. Runs on the CPU."""

    def estimate(self, img0: Tensor, img1: Tensor) -> Tensor:
        """Flow (B, 2, H, W) in pixels: what img0 shows at p, img1 shows at p + flow(p).

        img0, img1: RGB, (B, 3, H, W) in [0, 1], any size. The result lies on img0's device.
        """
        check(img0, img1)
        height, width = img0.shape[-2:]
        pairs = zip(_grey(img0), _grey(img1))
        flow = np.stack([_search().calc(first, second, None)[:height, :width] for first, second in pairs])
        return torch.from_numpy(flow).movedim(-1, 1).contiguous().to(img0.device)


def _search() -> cv2.DISOpticalFlow:
    # A new one for each pair: for frames below 46 pixels it changes its own settings and keeps them so.
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setUseSpatialPropagation(True)
    return search


def _grey(frames: Tensor) -> list[np.ndarray]:
    rgb = (frames.float() * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
    below, beside = (max(SMALLEST - side, 0) for side in rgb.shape[1:3])
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in rgb]
    return [cv2.copyMakeBorder(frame, 0, below, 0, beside, cv2.BORDER_REPLICATE) for frame in grey]
