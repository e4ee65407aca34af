"""What two neighbouring frames have to do with each other: one shot or two, motion or the same frame once more."""

import cv2
import numpy as np

THUMBNAIL = (128, 72)
# The part of a thumbnail's contrast that motion does not explain. Measured on 41 real clips: of 7,000 neighbours all
# but two (a dissolve and a jump in the recording) stay below 0.53, of 600 joints between two clips all lie above 0.59.
CUT = 0.56
FLAT = 4.0  # grey levels added to the contrast: a dark picture's noise is no cut
# A repeated frame differs by the noise of compression alone, and nowhere by more: grey levels on the mean of the whole
# picture and of its worst cell. Measured on 2,100 neighbours of ten clips: motion begins at 0.18 and 3, both together.
REPEAT, REPEAT_CELL, CELLS = 0.25, 3, (32, 18)


def thumbnail(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def unexplained(first: np.ndarray, second: np.ndarray) -> float:
    """How much of one thumbnail is not the other one, moved: the mean difference after following DIS optical flow, in
    the better of the two directions, relative to the weaker contrast. About 0 for one shot, 1 for two."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    rows, columns = np.mgrid[: first.shape[0], : first.shape[1]].astype(np.float32)

    def residual(a: np.ndarray, b: np.ndarray) -> float:
        flow = search.calc(a, b, None)
        moved = cv2.remap(b, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
        return cv2.absdiff(a, moved).mean()

    contrast = min(first.std(), second.std()) + FLAT
    return min(residual(first, second), residual(second, first)) / contrast


def is_cut(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two frames, RGB uint8 (H, W, 3), are of two shots: see CUT."""
    return unexplained(thumbnail(first), thumbnail(second)) > CUT


def is_repeat(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the second of two frames, RGB uint8 (H, W, 3), shows nothing new: see REPEAT."""
    difference = cv2.absdiff(first, second)
    worst = cv2.resize(difference, CELLS, interpolation=cv2.INTER_AREA).max()
    return worst <= REPEAT_CELL and difference.mean() <= REPEAT


def change(first: np.ndarray, second: np.ndarray) -> float:
    """Grey levels by which two frames, RGB uint8 (H, W, 3), differ on the mean."""
    return cv2.absdiff(first, second).mean()
