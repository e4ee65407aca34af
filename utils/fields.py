"""Interlaced video: frames that hold two moments, one in their even and one in their odd rows."""

from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
from av.filter import Graph

INTERLACED = "{}: interlaced; frames are treated as one moment each; deinterlace it first: ffmpeg -i IN -vf bwdif OUT"
SEEMS = "{}: seems to be interlaced, though not marked so; deinterlace it first: ffmpeg -i IN -vf bwdif OUT"
# Film at 24 frames a second made 30: of every five frames two are woven of their neighbours.
TELECINED = "{}: seems to be telecined film; restore its frames first: ffmpeg -i IN -vf {} OUT"
RESTORE = "fieldmatch,yadif=deint=interlaced,decimate"
LEAST_ROWS = 240  # interlaced formats have 480 and more; what is found in tiny frames is chance
CAMERAS = ("yuv", "uyvy")  # the pixel formats of interlaced codecs; FFmpeg cannot convert every other
# Of the first frames of real footage none seems woven, unless it is strongly compressed, then up to half, rarely more;
# nearly all do where frames are woven of it, and two in five or more where it is telecined.
INTERLACED_SHARE, WOVEN, REPEATED = 3 / 4, 3, 2


def note(path: str, frames: Sequence[av.VideoFrame]) -> str | None:
    """What a user should know of a video that begins with these frames; None if there is nothing. path: its name."""
    marked = any(frame.interlaced_frame for frame in frames)
    woven = _count(frames, "multiple", "ff") if _fit_to_judge(frames) else 0  # "tff" or "bff"
    if woven >= WOVEN and len(frames) - _count(frames, "repeated", "neither") >= REPEATED:
        return TELECINED.format(path, RESTORE)
    if marked:
        return INTERLACED.format(path)
    return SEEMS.format(path) if woven >= max(WOVEN, INTERLACED_SHARE * len(frames)) else None


def length(frames: Sequence[av.VideoFrame], rate: Fraction | None, tick: Fraction) -> Fraction | None:
    """For how long a field is shown of interlaced video that begins with these frames, so that packets which last no
    longer hold one of a frame's two; None where it is not interlaced, or `rate`, frames a second by what the codec
    says, is not theirs. tick: of their times."""
    times = [frame.pts for frame in frames if frame.pts is not None]
    apart = min((b - a for a, b in pairwise(times)), default=0) * tick
    if not rate or apart * rate < Fraction(3, 4) or not any(frame.interlaced_frame for frame in frames):
        return None
    return 1 / (2 * rate)


class Shown(NamedTuple):
    """When and for how long a packet's frame or field is shown; None and 0 where that is not known."""

    time: Fraction | None
    lasts: Fraction


def joined(shown: Sequence[Shown], field: Fraction | None) -> list[Shown]:
    """The same of frames, out of that of packets, in the order of decoding. Two that take no more than a `field` hold
    one of a frame's two each. None: all hold frames."""

    def one(length: Fraction) -> bool:
        return 0 < length < field * 3 / 2

    if field is None:
        return list(shown)
    result, waiting = [], None
    for each in shown:
        # Containers may tell of each field how long both are shown: then the time of the second one tells.
        apart = 0 if waiting is None or None in (waiting.time, each.time) else each.time - waiting.time
        if waiting and (one(apart) or one(waiting.lasts) and one(each.lasts)):
            both = waiting.lasts + each.lasts if one(waiting.lasts) else waiting.lasts
            result[-1], waiting = waiting._replace(lasts=both), None
        else:
            result.append(each)
            waiting = each
    return result


def _fit_to_judge(frames: Sequence[av.VideoFrame]) -> bool:
    first = frames[0]
    alike = all((f.width, f.height, f.format.name) == (first.width, first.height, first.format.name) for f in frames)
    return alike and first.height >= LEAST_ROWS and first.format.name.startswith(CAMERAS)


def _count(frames: Sequence[av.VideoFrame], what: str, end: str) -> int:
    """In how many frames what FFmpeg's filter idet finds ends like this. "multiple": whether the frame is woven of two
    moments. "repeated": which of its fields repeats one of the frame before. Counted by a filter, as PyAV 17 shows no
    findings."""
    graph, tick, first = Graph(), Fraction(1, 1000), frames[0]
    source = graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=tick)
    # Brightness only: rows of colour that were doubled, as on the way from 4:2:0 to 4:2:2, look woven where they move.
    found = f"select:key=lavfi.idet.{what}.current_frame:value={end}:function=ends_with"
    filters = [graph.add("format", "gray"), graph.add("idet"), graph.add("metadata", found), graph.add("buffersink")]
    graph.link_nodes(source, *filters).configure()
    for k, frame in enumerate(frames):
        frame.pts, frame.time_base = k, tick  # the filter drops frames without times
        graph.vpush(frame)
    graph.vpush(None)
    count = 0
    with suppress(av.error.EOFError):
        while graph.vpull():
            count += 1
    return count
