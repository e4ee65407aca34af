"""When frames are shown: exact times of the output, cuts that are not bridged, repeats that are dropped.

Times are Fractions, in seconds from the first frame; a frame is shown from its time until the next one's.
"""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from math import ceil, gcd
from typing import Any, NamedTuple

import numpy as np

from .shots import is_repeat

MOST_REPEATS = 3  # in a row: 15 frames a second stored as 60. A picture that stays longer does so on purpose.
# A longer time without a frame, in seconds, is a pause, not motion: screen recorders store no still pictures. At low
# rates it must also be longer than a frame and MOST_REPEATS repeats of it take.
PAUSE = Fraction(1, 2)
FEWEST, OFTEN = 8, 0.1  # pauses, and pauses per movement: 25 frames a second stored as 30 have 0.2, some of them hidden
# By how much more repeats must agree with those one and two cadences ago than with those between: compression hides
# some, and with three in ten of them hidden a cadence is still found. And how much larger their share may be.
REGULAR, MORE = 0.3, 0.05
SINGLE = 1.1  # repeats in a pause, on average, up to which all have one


class Cadence(NamedTuple):
    """Of so many frames so many repeat the one before. even: the filters of FFmpeg that leave the others, evenly."""

    repeats: int
    frames: int
    even: str


# 24 and 25 frames a second stored as 30, and 24 as 60. Their motion stays uneven where repeats alone are dropped.
CADENCES = (Cadence(1, 5, "decimate"), Cadence(1, 6, "decimate=6"), Cadence(3, 5, "decimate,decimate=2"))


class Frame(NamedTuple):
    """image: RGB (H, W, 3), uint8 or uint16. original: what the decoder gave, to pass through unchanged, or None."""

    time: Fraction
    image: np.ndarray
    original: Any = None


class Grid(NamedTuple):
    """The output's times. factor: frames for each of the input's; rate: frames a second instead, where not None.
    slow: time is stretched by this factor first."""

    factor: int = 1
    rate: Fraction | None = None
    slow: Fraction = Fraction(1)

    def times(self, start: Fraction, stop: Fraction) -> list[Fraction]:
        """Output times in [start, stop), where start and stop are the input's times of two neighbours."""
        start, stop = start * self.slow, stop * self.slow
        if self.rate is None:
            return [start + (stop - start) * k / self.factor for k in range(self.factor)]
        return [k / self.rate for k in range(ceil(start * self.rate), ceil(stop * self.rate))]

    def last(self, time: Fraction, hold: Fraction) -> list[Fraction]:
        """Output times at the input's last frame, which is shown for `hold` seconds: the output lasts as long."""
        return [time * self.slow] if self.rate is None else self.times(time, time + hold)

    def count(self, frames: int, rate: Fraction) -> int:
        """How many frames come out of `frames` at a constant rate."""
        if self.rate is None:
            return max(frames - 1, 0) * self.factor + 1
        return ceil(Fraction(frames) / rate * self.slow * self.rate)

    def tick(self, step: Fraction, rate: Fraction) -> Fraction:
        """A unit in which all output times are whole numbers. step, rate: the unit of the input's times and its frame
        rate, on whose multiples times may also lie."""
        if self.rate is not None:
            return 1 / self.rate
        return common(step * self.slow / self.factor, self.slow / rate / self.factor)


def common(a: Fraction, b: Fraction) -> Fraction:
    """The largest number of which both are whole multiples."""
    return Fraction(gcd(a.numerator * b.denominator, b.numerator * a.denominator), a.denominator * b.denominator)


def snapped(time: Fraction, rate: Fraction, step: Fraction) -> Fraction:
    """The k-th multiple of 1 / rate that a container wrote down as `time`, if it is one.

    Containers count in steps (Matroska in milliseconds), and a frame rate rarely fits: 1001/24000 s becomes 42 ms.
    """
    exact = round(time * rate) / rate
    return exact if abs(exact - time) <= step and 4 * step * rate < 1 else time


class Step(NamedTuple):
    """Two neighbours and what is to be shown from the first until the second: output times, and for each the t in
    [0, 1) of the moment between them. Across a cut, and after the last frame (second is first), all t are 0; in a pause
    they are 0 until motion begins."""

    first: Frame
    second: Frame
    times: list[Fraction]
    ts: list[Fraction]


def steps(
    frames: Iterable[Frame],
    grid: Grid,
    segment: Fraction,
    stop: Fraction | None = None,
    cut: Callable[[np.ndarray, np.ndarray], bool] | None = None,
    repeat: Callable[[np.ndarray, np.ndarray], bool] | None = None,
    hold: Fraction = Fraction(0),
    usual: Fraction | None = None,
) -> Iterator[Step]:
    """What to show, pair by pair, until the first frame at or after `stop` (None: to the end).

    segment: seconds; decisions about the frames of a segment depend only on that segment and the frame after it. cut,
    repeat: predicates on two images; None: never. Where there is a cut, the first of both is shown until the second. A
    frame that repeats the one before is dropped, and the motion goes on from that one to the next; the output's times
    are still those of all frames. hold: seconds that the last frame is shown for. usual: seconds from most frames to
    the next; after a pause, see PAUSE, the motion to the next frame takes only so long. None: there are no pauses.
    """
    first, latest, due, dropped = None, None, [], 0
    for frame in frames:
        ends = stop is not None and frame.time >= stop
        if first is None:
            if ends:
                return
            first = latest = frame
            continue
        due += grid.times(latest.time, frame.time)
        latest = frame
        same = frame.time // segment == first.time // segment
        if repeat and same and repeat(first.image, frame.image):
            if dropped < MOST_REPEATS:
                dropped += 1
                continue
        else:
            dropped = 0
        apart = cut is not None and cut(first.image, frame.image)
        still = usual is not None and frame.time - first.time > max(PAUSE, (MOST_REPEATS + 1) * usual)
        begin = frame.time - usual if still else first.time
        span = (frame.time - begin) * grid.slow
        ts = [Fraction(0) if apart else max(Fraction(0), time - begin * grid.slow) / span for time in due]
        yield Step(first, frame, due, ts)
        if ends:
            return
        first, due = frame, []  # `dropped` stays: further repeats are kept, and motion after a pause begins when it did
    if first is not None:
        due += grid.last(latest.time, hold)
        yield Step(first, first, due, [Fraction(0)] * len(due))


class Pauses:
    """A predicate for `steps` that tells which frames are repeats and should be dropped, or none of them, but counts
    both them and how often motion pauses for one to MOST_REPEATS frames."""

    def __init__(self, drop: bool):
        self.drop, self.repeats = drop, bytearray()  # a byte for each frame

    def __call__(self, first: np.ndarray, second: np.ndarray) -> bool:
        same = bool(is_repeat(first, second))
        self.repeats.append(same)
        return self.drop and same

    @property
    def pauses(self) -> np.ndarray:
        """How many frames each of them lasts."""
        still = np.diff(np.flatnonzero(~np.frombuffer(self.repeats, bool)), prepend=-1) - 1
        return still[(1 <= still) & (still <= MOST_REPEATS)]

    @property
    def often(self) -> bool:
        """Whether there were so many that the input seems to have been made at a lower rate, as animation is."""
        return len(self.pauses) >= max(FEWEST, OFTEN * self.repeats.count(False))

    @property
    def regular(self) -> Cadence | None:
        """The cadence in which repeats come, if there is one and they come often."""
        found, lasting = np.frombuffer(self.repeats, bool), self.pauses
        if not self.often or len(found) < FEWEST * 6:
            return None
        agree = [np.corrcoef(found[:-lag], found[lag:])[0, 1] for lag in range(1, 13)]
        share = lasting.sum() / (lasting.sum() + self.repeats.count(False))
        for cadence in CADENCES:
            repeats, frames, _ = cadence
            periodic = min(agree[frames - 1], agree[2 * frames - 1]) > max(agree[: frames - 1]) + REGULAR
            if periodic and share < repeats / frames + MORE and (lasting.mean() > SINGLE) == (repeats > 1):
                return cadence
        return None
