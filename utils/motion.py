"""How far things move between two frames, and the scale at which flow is best estimated for it."""

import cv2
import numpy as np

from models import interpolator

from .shots import THUMBNAIL, thumbnail

PERCENTILE = 95  # of the lengths of flow: the largest motion, ignoring stray vectors
# (pixels of motion up to which it applies, scale). Found with an earlier IFRNet_S on 142 windows of the
# clips it was trained on: 32.21 dB, at scale 1 throughout 32.07 (benchmarks/Clips.py --clips NAMES --per_clip 5 --fast
# --model_name IFRNet_S, with and without --scale auto; the names are those of the table in the model card).
SCALES = ((18, 1.0), (40, 0.5))


def motion(first: np.ndarray, second: np.ndarray) -> float:
    """The 95th percentile of the length of the flow between two frames, RGB uint8 or uint16 (H, W, 3), in their pixels;
    by DIS on thumbnails."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = search.calc(thumbnail(first), thumbnail(second), None)
    growth = np.divide(first.shape[1::-1], THUMBNAIL)
    return float(np.percentile(np.linalg.norm(flow * growth, axis=-1), PERCENTILE))


def scale_by_motion(first: np.ndarray, second: np.ndarray) -> float:
    """The scale at which to estimate the flow between two frames, RGB uint8 or uint16 (H, W, 3): by motion (SCALES),
    for large frames by their size too (models.interpolator.scale_for)."""
    length = motion(first, second)
    by_motion = next((scale for longest, scale in SCALES if length <= longest), interpolator.SMALLEST_SCALE)
    return min(by_motion, interpolator.scale_for(*first.shape[:2]))
