"""From frames to more frames, in stages that run side by side: decode, find cuts, infer; the caller writes.

Each stage is a generator in a thread of its own, and only a few items wait between two of them: memory does not grow
with the length. Frames travel to the device and back as bytes, on a GPU while the network computes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.baselines import Baseline
from models.interpolator import Interpolator

from . import io
from .ahead import ahead
from .timeline import Frame, Grid, Step, steps
from .video import Source

QUEUED = 2**28  # bytes of frames that may wait between two stages
DEEPEST = 16  # frames that may wait, at most
# The share of the time to the next frame within which a frame of the input is shown, not a new one: it is sharper and
# nearer to the truth. The networks are worst there: of a pan by 5 pixels, IFRNet_S has 32 dB at t = 0.005, the frame
# itself 53; 36 and 42 at 0.02, 41 and 35 at 0.05.
NEAR = Fraction(1, 50)


class Arriving(NamedTuple):
    """A frame on its way from a device. frame: integers (H, W, 3) in host memory, there once `arrived` has happened."""

    frame: Tensor
    arrived: torch.cuda.Event | None

    def image(self) -> np.ndarray:
        """RGB uint8 or uint16 (H, W, 3); waits for it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.frame.numpy()


class Picture(NamedTuple):
    """One frame of the output. segment: number of the part that it belongs to. before: the latest frame of the input,
    or the next one if that is shown. made: the new frame to show, None: `before` itself. lasts: how long it is shown,
    if unlike the others."""

    segment: int
    time: Fraction
    before: Frame
    made: Arriving | None
    lasts: Fraction | None = None

    def image(self) -> np.ndarray:
        """RGB uint8 or uint16 (H, W, 3)."""
        return self.before.image if self.made is None else self.made.image()


class Copies:
    """Frames to a device and back. On a GPU each way has its own stream: the network waits only for the frames that it
    needs, and continues while its results are fetched."""

    def __init__(self, device: torch.device):
        self.device = device
        self.up = self.down = None
        if device.type == "cuda":
            self.up, self.down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def to_device(self, image: np.ndarray) -> Tensor:
        """See io.to_float."""
        if self.up is None:
            return io.to_float(image, self.device)
        with torch.cuda.stream(self.up):
            frame = io.to_float(image, self.device)
        work = torch.cuda.current_stream(self.device)
        work.wait_stream(self.up)
        frame.record_stream(work)
        return frame

    def from_device(self, frame: Tensor, deep: bool) -> Arriving:
        """frame: float (3, H, W) in [0, 1]. deep: as uint16, not uint8."""
        frame = to_integers(frame, deep).movedim(0, -1).contiguous()
        if self.down is None:
            return Arriving(frame.cpu(), None)
        here = torch.empty(frame.shape, dtype=frame.dtype, pin_memory=True)
        self.down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.down):
            here.copy_(frame, non_blocking=True)
        frame.record_stream(self.down)
        return Arriving(here, self.down.record_event())


def pictures(
    source: Source,
    grid: Grid,
    call: Interpolator | Baseline,
    segment: int,
    start: Fraction = Fraction(0),
    stop: Fraction | None = None,
    cut: Callable[[np.ndarray, np.ndarray], bool] | None = None,
    repeat: Callable[[np.ndarray, np.ndarray], bool] | None = None,
    scale: Callable[[np.ndarray, np.ndarray], float] | None = None,
    deep: bool = False,
) -> Iterator[Picture]:
    """The output from `start` to `stop`, times of the input. segment: seconds per part; cut, repeat: see
    timeline.steps; scale: see infer; deep: see video.Source.frames."""
    depth = max(2, min(DEEPEST, QUEUED // (source.width * source.height * (9 if deep else 5))))
    lasts = None if grid.rate or source.steady else source.hold * grid.slow
    # All are closed here: a stage that fails leaves the one before it running.
    with closing(ahead(source.frames(start, deep), depth)) as frames:
        paired = steps(frames, grid, Fraction(segment), stop, cut, repeat, source.hold, source.usual)
        with closing(ahead(paired, 2)) as pairs:
            with closing(ahead(infer(pairs, call, segment, scale, lasts), depth)) as made:
                yield from made


def infer(
    pairs: Iterable[Step],
    call: Interpolator | Baseline,
    segment: int,
    scale: Callable[[np.ndarray, np.ndarray], float] | None = None,
    lasts: Fraction | None = None,
) -> Iterator[Picture]:
    """The pictures to show, in order; those between two frames are made here.

    scale: gives the scale for the images of a pair, in place of the interpolator's. lasts: see Picture, for the very
    last one.
    """
    copies = Copies(call.device)
    latest: tuple[Frame | None, Tensor | None] = (None, None)
    for group, asked in batches(pairs, call, scale):
        ts = [t for t in group[0].ts if is_between(t)]
        made: Iterator[Tensor] = iter(())
        if ts:
            uploaded = []
            for step in group:
                first = latest[1] if step.first is latest[0] else copies.to_device(step.first.image)
                latest = step.second, copies.to_device(step.second.image)
                uploaded.append((first, latest[1]))
            made = between(call, *map(torch.stack, zip(*uploaded)), ts, asked)
        # A single pair's frames pass one at a time; those of several pairs arrive time by time, but leave pair by pair.
        rows = [(frames[0] for frames in made)] if len(group) == 1 else zip(*made)
        for step, row in zip(group, map(iter, rows)):
            for time, t in zip(step.times, step.ts):
                here = copies.from_device(next(row), step.first.image.dtype == np.uint16) if is_between(t) else None
                shown = step.second if t > 1 - NEAR else step.first
                last = step.second is step.first and time == step.times[-1]
                yield Picture(int(step.first.time // segment), time, shown, here, lasts if last else None)


def batches(
    pairs: Iterable[Step],
    call: Interpolator | Baseline,
    scale: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> Iterator[tuple[list[Step], float | None]]:
    """Neighbouring pairs with the same times and scale, as many as the device takes at once, and this scale."""
    group: list[Step] = []
    shared = None
    for step in pairs:
        most = call.pairs_at_once(*step.first.image.shape[:2]) if isinstance(call, Interpolator) else 1
        new = any(map(is_between, step.ts))
        asked = scale(step.first.image, step.second.image) if scale and new else None
        if group and (step.ts != group[0].ts or asked != shared or not new or len(group) >= most):
            yield group, shared
            group = []
        group.append(step)
        shared = asked
    if group:
        yield group, shared


def between(
    call: Interpolator | Baseline, img0: Tensor, img1: Tensor, ts: Iterable[Fraction], scale: float | None = None
) -> Iterator[Tensor]:
    """The frames at ts, one after another, (B, 3, H, W). Weights that know only t = 0.5 bisect repeatedly. scale:
    see Interpolator."""
    if call.any_time:
        yield from call.each(img0, img1, [float(t) for t in ts], scale)
        return
    known = {Fraction(0): img0, Fraction(1): img1}

    def frame(t: Fraction) -> Tensor:
        if t not in known:
            if not halves(t):
                call.check_times([float(t)])
            step = Fraction(1, t.denominator)  # t is an odd multiple of it: both neighbours have smaller denominators
            known[t] = next(call.each(frame(t - step), frame(t + step), scale=scale))
        return known[t]

    for t in ts:
        yield frame(t)


def is_between(t: Fraction) -> bool:
    """Whether a new frame is shown at t, not one of its neighbours: see NEAR."""
    return NEAR <= t <= 1 - NEAR


def halves(t: Fraction) -> bool:
    """Whether t is reached by repeated halving."""
    return t.denominator & (t.denominator - 1) == 0


def to_integers(frame: Tensor, deep: bool = False) -> Tensor:
    """Float in [0, 1] -> uint8, or uint16 where `deep`, rounded, on the same device. ValueError for NaN on a CPU."""
    if frame.device.type == "cpu" and frame.isnan().any():  # on a GPU this would synchronise
        raise ValueError("a new frame holds NaN; check the model or method, or try --precision fp32")
    most, kind = (65535, torch.uint16) if deep else (255, torch.uint8)
    return frame.mul(most).round_().clamp_(0, most).to(kind)
