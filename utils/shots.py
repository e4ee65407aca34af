"""How two neighbouring frames relate: one shot or a cut, motion or a repeated frame, and how much time lies between
them."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import cv2
import numpy as np

THUMBNAIL = (128, 72)
# The share of a thumbnail's contrast that motion does not explain. Measured on 41 real clips: of 7,000 neighbours all
# but six (a jump in the recording, the others in a transition by a flash) stay below 0.43; of 1,640 joints of the end
# of one clip to the beginning of another all but five lie above 0.48.
CUT = 0.46
FLAT = 4.0  # grey levels added to the contrast, so that a dark picture's noise is no cut
FADE = 8  # grey levels by which a frame may be brighter or darker as a whole: those of a fade of 16 frames
BAR = 16  # grey levels up to which the border of both frames is a bar: black, also where its range is wrongly tagged
LEAST_PICTURE, LEAST_LIT = 0.2, 0.5  # shares of a frame within bars, and of its pixels that are brighter than they
# A repeated frame differs only by the noise of compression, everywhere: mean difference in grey levels of the whole
# picture and of its worst cell. Measured on 2,100 neighbours of ten clips: motion begins at 0.18 and 3, both together.
REPEAT, REPEAT_CELL, CELLS = 0.25, 3, (32, 18)
# A change below REPEATED times the median of as many as AROUND on either side is a repeat. Measured on 41 real clips:
# repeats, every fifth or seventh frame in some of them, 0.14 at most; motion that slows down, 0.17 and more.
AROUND, REPEATED = 5, 0.15
LEAP = 1.5  # times the usual step from frame to frame, or the usual step divided by it
# Steps of 3:2 in a row that are no chance, as those of a game that now and then takes longer: a second of film. And
# units that the shorter one has at least, or rounding would hide much.
LEAST_TURNS, FINE = 24, 15


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Grey uint8 (h, w) of a frame, RGB uint8 or uint16 (H, W, 3)."""
    grey = cv2.cvtColor(cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return grey if grey.dtype == np.uint8 else cv2.convertScaleAbs(grey, alpha=1 / grey_level(grey))


def grey_level(image: np.ndarray) -> float:
    """One grey level of 8 bits in the units of an image, uint8 or uint16."""
    return np.iinfo(image.dtype).max / 255


def unexplained(first: np.ndarray, second: np.ndarray) -> float:
    """How much of one thumbnail is not the other one, moved: the mean difference after warping by DIS optical flow and
    fading, in the better of the two directions, relative to the weaker contrast. About 0 within a shot, 1 across a
    cut."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(0)  # the preset stops at a quarter of the size, where lines of text are one grey
    rows, columns = np.mgrid[: first.shape[0], : first.shape[1]].astype(np.float32)

    def residual(a: np.ndarray, b: np.ndarray) -> float:
        flow = search.calc(a, b, None)
        moved = cv2.remap(b, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
        difference = np.subtract(a, moved, dtype=np.float32)
        # A fade's last frames have so little contrast that their change in brightness alone would be a cut.
        return np.abs(difference - difference.mean().clip(-FADE, FADE)).mean()

    contrast = min(first.std(), second.std()) + FLAT
    return min(residual(first, second), residual(second, first)) / contrast


def is_cut(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two frames, RGB uint8 or uint16 (H, W, 3), belong to two shots: see CUT."""
    small = [thumbnail(first), thumbnail(second)]
    if inside := within_bars(*small, first.shape[:2]):
        small = [thumbnail(first[inside]), thumbnail(second[inside])]
    return unexplained(*small) > CUT


def within_bars(first: np.ndarray, second: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """The rows and columns of frames of this (height, width) that are not bars of both their thumbnails: beside black
    bars contrast is large, and what differs is small. None without bars: what they leave is large and mostly lit, as
    something bright in the dark is not."""
    lit = np.maximum(first, second) > BAR
    spans = [np.flatnonzero(lit.any(1 - axis)) for axis in (0, 1)]
    area = np.prod([span[-1] + 1 - span[0] if span.size else 0 for span in spans])
    if area == lit.size or area < LEAST_PICTURE * lit.size or lit.sum() < LEAST_LIT * area:
        return None
    sides = zip(spans, lit.shape, size)
    return tuple(slice(int(k[0]) * side // of, -(-(int(k[-1]) + 1) * side // of)) for k, of, side in sides)


def is_repeat(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the second of two frames, RGB uint8 or uint16 (H, W, 3), shows nothing new: see REPEAT."""
    return is_still(*change(first, second))


def is_still(mean: float, worst: float) -> bool:
    """The same, from what `change` returns."""
    return worst <= REPEAT_CELL and mean <= REPEAT


def change(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The mean difference of two frames, RGB uint8 or uint16 (H, W, 3), in grey levels of 8 bits: of the picture and of
    its worst cell."""
    difference, unit = cv2.absdiff(first, second), grey_level(first)
    return difference.mean() / unit, cv2.resize(difference, CELLS, interpolation=cv2.INTER_AREA).max() / unit


def find_breaks(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Between which neighbours of F frames, uint8 (H, W, 3), there is a cut or a repeat: (F - 1,) bool.
    Repeats that compression hides from `is_repeat` are found by how little they change against their neighbours."""
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


def evened(times: Sequence[int], longest: float = math.inf) -> list[int]:
    """Times of frames in order, in whole units; film's that are stored as a display of 60 fields or frames a second
    shows it, one frame for three of these and the next for two (3:2 pulldown), become even again, as it was filmed.
    longest: what is shown for longer is no film, but pictures that somebody wants to be shown so."""
    result, steps = list(times), np.diff(times)
    first, second = steps[:-1], steps[1:]
    turns = np.abs(2 * np.maximum(first, second) - 3 * np.minimum(first, second)) <= 5  # as much is lost by rounding
    turns &= (np.minimum(first, second) >= FINE) & (np.maximum(first, second) <= longest)
    edges = np.flatnonzero(np.diff(turns, prepend=False, append=False)).tolist()
    for start, stop in zip(edges[::2], edges[1::2]):
        if stop - start >= LEAST_TURNS:
            for k in range(start + 1, stop + 2, 2):
                both = times[k + 1] - times[k - 1] if k <= stop else times[k] - times[k - 2]
                even = times[k - 1] + both // 2
                if k + 1 == len(times) or even < times[k + 1]:  # behind film a frame may come at once
                    result[k] = even
    return result


def leaps(times: Sequence[int | None]) -> list[int]:
    """The frames of a video after which the next comes later or sooner than usual, so that a middle frame is not
    half-way in time. times: of all frames, in units to which a steady rate may be rounded; where one is None, which
    means not known, nothing is found."""
    steps = [] if None in times else np.diff(evened(times))
    usual = np.quantile(steps, 0.5, method="lower") if len(steps) else 0
    if usual <= 0:
        return []
    rounded = int(usual > 1)
    most, least = max(usual * LEAP, usual + rounded + 1), min(usual / LEAP, usual - rounded - 1)
    return [place for place, step in enumerate(steps) if step <= least or step >= most]
