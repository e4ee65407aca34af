"""What two neighbouring frames have to do with each other: one shot or two, motion or the same frame once more, and how
much time lies between them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

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
# Of what changes in as many neighbours before and after. Measured on 41 real clips: where frames are repeated, as each
# fifth or seventh is in some of them, 0.14 at most; motion that slows down leaves 0.17 and more.
AROUND, REPEATED = 5, 0.15
LEAP = 1.5  # times the usual step from frame to frame, or a part of it


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
    return is_still(*change(first, second))


def is_still(mean: float, worst: float) -> bool:
    """The same of what `change` gives."""
    return worst <= REPEAT_CELL and mean <= REPEAT


def change(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Grey levels by which two frames, RGB uint8 (H, W, 3), differ on the mean of the picture and of its worst cell."""
    difference = cv2.absdiff(first, second)
    return difference.mean(), cv2.resize(difference, CELLS, interpolation=cv2.INTER_AREA).max()


def find_breaks(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Between which neighbours of F frames, uint8 (H, W, 3), there is a cut or nothing new: (F - 1,) bool. What
    `is_repeat` takes for motion, because compression changed it, is told by how much changes elsewhere."""
    found, changes = [], []
    for first, second in pairwise(frames):
        mean, worst = change(first, second)
        found.append(is_cut(first, second) or is_still(mean, worst))
        changes.append(mean)
    if len(found) < 2:
        return np.array(found, bool)
    around = np.pad(changes, AROUND, constant_values=np.nan)
    usual = np.nanmedian([around[i : i + len(found)] for i in range(2 * AROUND + 1) if i != AROUND], axis=0)
    return np.array(found) | (np.array(changes) < REPEATED * usual)


def leaps(times: Sequence[int | None]) -> list[int]:
    """After which frames of a video the next comes later or sooner than is usual in it: another moment than half the
    way lies half-way there. times: of all frames, in units that a steady rate may be rounded to; a None among them: not
    known, and nothing is found."""
    steps = [] if None in times else np.diff(times)
    usual = np.quantile(steps, 0.5, method="lower") if len(steps) else 0
    if usual <= 0:
        return []
    rounded = int(usual > 1)
    most, least = max(usual * LEAP, usual + rounded + 1), min(usual / LEAP, usual - rounded - 1)
    return [place for place, step in enumerate(steps) if step <= least or step >= most]
