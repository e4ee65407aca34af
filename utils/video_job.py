"""Making the output of interpolate_video.py: frames into a pipe, or into parts that are joined in the end.

`args` are the script's options. Complete parts survive a kill; several ranks make their shares side by side.
"""

import argparse
import errno
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import chain, groupby
from itertools import count as infinity
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import models
from models.baselines import Baseline, External
from models.interpolator import Interpolator

from . import distributed, io, video, video_join, video_out
from .motion import scale_by_motion
from .parts import Parts, holds_part
from .pipeline import Picture, pictures
from .shots import is_cut
from .timeline import Grid, Pauses

NONE = "{}: not a single frame"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk or quota, or a file larger than allowed
RECORDED = ("model_name", "checkpoint", "scale", "factor", "fps", "slow", "cuts", "dedup", "codec", "crf", "compare")
RECORDED += ("segment", "input_fps")


def say(line: str) -> None:
    if distributed.is_main():
        print(line, file=sys.stderr, flush=True)  # standard output may carry the video


def by_motion(args: argparse.Namespace) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """The function that chooses the scale for a pair of images, or None if --scale is fixed."""
    return scale_by_motion if args.scale == "auto" else None


class Job(NamedTuple):
    """Everything about the output to make. kind: see video_out.kind_of. pauses: counts those of the input."""

    args: argparse.Namespace
    source: video.Source
    grid: Grid
    call: Interpolator | Baseline
    form: video_out.Format
    kind: str
    pauses: Pauses

    def pictures(self, runs: Sequence[range]) -> Iterator[Picture]:
        """The output frames of these runs of segments; of the whole input if its length is known only after reading."""
        args, last = self.args, self.segments()
        for run in runs:
            start, stop = (Fraction(number * args.segment) for number in (run.start, run.stop))
            end = None if run.stop == last else stop
            how = (self.unbridged, self.pauses, by_motion(args), self.form.deep)
            with closing(pictures(self.source, self.grid, self.call, args.segment, start, end, *how)) as made:
                yield from made

    def unbridged(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether no frames are made between two: across a cut, and where they are equal, as those made would be."""
        return np.array_equal(first, second) or self.args.cuts == "yes" and is_cut(first, second)

    @property
    def endless(self) -> bool:
        """Whether the input can be read only once, and its length is not known before."""
        return self.source.count is None

    def segments(self) -> int:
        return 1 if self.source.last is None else int(self.source.last // self.args.segment) + 1

    def count(self, segments: int) -> int | None:
        """About how many output frames this many segments make; None if unknown."""
        if self.endless:
            return None
        return self.grid.count(self.source.count, self.source.rate) * segments // self.segments()

    def gather(self, damaged: int) -> None:
        """Wait until every rank has made its share, and count what all of them met. damaged: frames, before that; some
        count twice where one share ends and another begins, as decoders work on several frames at once."""
        met = distributed.gather((self.pauses.repeats, self.source.damaged - damaged))
        self.pauses.repeats = bytearray().join(repeats for repeats, _ in met)
        self.source.damaged = damaged + sum(lost for _, lost in met)

    def write(self, writer, picture: Picture) -> None:
        before, image = picture.before, picture.image()
        if self.args.compare:
            writer.write(beside(before.image, image, self.args.compare), picture.time, None, picture.lasts)
        else:
            original = before.original if picture.made is None else None
            writer.write(image, picture.time, original, picture.lasts)


def to_pipe(job: Job) -> None:
    if distributed.world_size() > 1:
        raise ValueError("only one process can write to a pipe; start without torchrun")
    writer, runs = video_out.pipe_writer(job.form), [range(job.segments())]
    try:
        with closing(counted(job.pictures(runs), job.count(len(runs[0])), job.form.rate)) as made:
            # y4m has no times, and those of a file may be too close for its rate.
            for number, picture in enumerate(made):
                job.write(writer, picture._replace(time=number / job.form.rate))
        if not writer.written:
            raise ValueError(NONE.format(job.source.path))
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def to_parts(job: Job) -> None:
    """Make the missing parts, each rank its share, then join all parts."""
    args, world, damaged = job.args, distributed.world_size(), job.source.damaged
    parts = Parts(Path(args.output), "" if job.kind == "folder" else video_out.PART, settings(job))
    if job.endless and (args.resume or world > 1):
        raise ValueError(f"{job.source.path}: can be read only once, in order; --resume and torchrun need a file")
    if distributed.is_main():
        parts.begin(args.resume)
    distributed.barrier()
    try:
        make(job, parts)
        job.gather(damaged)
        found = parts.joined or parts.finished()
        distributed.barrier()  # the main rank removes the parts after joining them
        if not found:
            raise ValueError(NONE.format(job.source.path))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted(job, parts)) from None
    except Exception as error:
        if distributed.is_main() and not parts.finished() and not holds_part(parts.out):
            parts.remove()
        elif isinstance(error, OSError) and error.errno in FULL:
            kept = f"what is done is in {parts.folder}" + ", and --resume continues" * (not job.endless)
            raise OSError(error.errno, f"{error.strerror}; {kept}", args.output) from error
        raise
    if distributed.is_main():
        finish(job, parts)


def make(job: Job, parts: Parts) -> None:
    """Make this rank's share of the missing parts."""
    rank, world, count = distributed.rank(), distributed.world_size(), job.segments()
    runs = parts.missing(count * rank // world, count * (rank + 1) // world)
    kind = video_out.FolderWriter if job.kind == "folder" else video_out.VideoWriter
    expected = infinity() if job.endless else chain.from_iterable(runs)
    with closing(counted(job.pictures(runs), job.count(sum(map(len, runs))), job.form.rate)) as made:
        for number, segment in groupby(made, key=lambda picture: picture.segment):
            for passed in expected:
                if passed == number:
                    break
                parts.skip(passed)  # no output frame falls into this segment
            with parts.making(number, lambda path: kind(path, job.form)) as writer:
                for picture in segment:
                    job.write(writer, picture)


def interrupted(job: Job, parts: Parts) -> str:
    """Show what an interrupted job has made, where nothing older is in its place; returns what to tell the user."""
    alone, out = distributed.world_size() == 1, Path(job.args.output)
    old = out.exists() and not holds_part(out) and not (out.is_dir() and not any(out.iterdir()))
    if alone and parts.unfinished() and (job.endless or not old):
        parts.show_part()  # first, or what is joined would pass for the whole if a kill came between
        join(job, parts.unfinished(), whole=False)
        if job.endless:
            parts.remove()
            return f"interrupted; {job.args.output} holds what is done"
    elif alone and not parts.finished() and not holds_part(out):
        parts.remove()
        return "interrupted"
    if alone and holds_part(out):
        return f"interrupted; {job.args.output} holds what is done, and --resume continues"
    return f"interrupted; what is done is in {parts.folder}, and --resume continues"


def finish(job: Job, parts: Parts) -> None:
    """Join all parts and remove them."""
    args, kept = job.args, f"all parts are in {parts.folder}" + ", and --resume joins them" * (not job.endless)
    try:
        if not parts.joined:
            join(job, parts.finished())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {kept}", args.output) from error
    parts.remove_joined()
    width, height = job.form.stored if job.kind in video_out.DEFAULTS else (job.form.width, job.form.height)
    say(f"wrote {args.output}: {width}x{height}, {float(job.form.rate):.6g} frames a second")


def join(job: Job, parts: list[Path], whole: bool = True) -> None:
    out = Path(job.args.output)
    if job.kind == "folder":
        video_join.join_folders(parts, out)
    elif job.kind == ".gif":
        video_join.join_gif(parts, out)
    else:
        source = job.source.path if isinstance(job.source, video.Video) else None
        begin, timed = job.source.begin, job.args.slow == 1
        if damaged := video_join.join_videos(parts, out, job.form, source, begin, whole, timed):
            say(f"{source}: {damaged} packet{'s' * (damaged > 1)} of sound or subtitles left out, damaged")


def counted(made: Iterator[Picture], total: int | None, rate: Fraction) -> Iterator[Picture]:
    """The same pictures; on the first rank a progress bar shows frame rate, speed against real time and time left."""
    start = time.perf_counter()
    with tqdm(total=total, unit="frame", disable=not distributed.is_main(), dynamic_ncols=True) as bar, closing(made):
        for picture in made:
            yield picture
            seconds = time.perf_counter() - start
            bar.set_postfix_str(f"{(bar.n + 1) / float(rate) / seconds:.2f}x real time", refresh=False)
            bar.update()


def beside(repeated: np.ndarray, made: np.ndarray, how: str) -> np.ndarray:
    """Repeated and interpolated frame side by side, or the left half of one and the right half of the other."""
    if how == "side":
        return np.concatenate([repeated, made], 1)
    middle = made.shape[1] // 2
    image = np.concatenate([repeated[:, :middle], made[:, middle:]], 1)
    image[:, middle] = np.iinfo(image.dtype).max
    return image


def settings(job: Job) -> dict[str, str]:
    """What must not change between a run and the one that resumes it."""
    args, call = job.args, job.call
    values = {name: "default" if (value := getattr(args, name)) is None else value for name in RECORDED}
    values["input"] = args.input
    if not job.endless:
        states = repr(io.states(job.source.paths))
        values["the input's state"] = hashlib.sha256(states.encode()).hexdigest()[:16]
    if isinstance(call, Interpolator):  # as chosen here; another machine may choose otherwise
        values |= {"fast": "yes" if call.mode == "fast" else "no", "precision": call.precision}
        values["weights"] = io.sha256(models.checkpoint_path(args.checkpoint or call.model.name))[:16]
    elif isinstance(call, External):
        values["code"] = io.sha256(call.path)[:16]
    if job.form.deep:
        values["pixels"] = f"{job.form.codec} of {job.form.depth} bits"
    return {name: str(value) for name, value in values.items()}
