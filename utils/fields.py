"""Interlaced video: frames that hold two moments, one in their even and one in their odd rows."""

from collections.abc import Sequence
from fractions import Fraction

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
    seen, marked = _seen(frames), any(frame.interlaced_frame for frame in frames)
    woven = sum(kind in ("tff", "bff") for kind, _ in seen)
    if woven >= WOVEN and sum(repeat != "neither" for _, repeat in seen) >= REPEATED:
        return TELECINED.format(path, RESTORE)
    if marked:
        return INTERLACED.format(path)
    return SEEMS.format(path) if woven >= max(WOVEN, INTERLACED_SHARE * len(frames)) else None


def _seen(frames: Sequence[av.VideoFrame]) -> list[tuple[str, str]]:
    """What FFmpeg's filter idet finds in each frame: whether it is "tff" or "bff", woven of two moments, and whether
    "neither" of its fields repeats one of the frame before. Empty for what it cannot judge."""
    first = frames[0]
    alike = all((f.width, f.height, f.format.name) == (first.width, first.height, first.format.name) for f in frames)
    if not alike or first.height < LEAST_ROWS or not first.format.name.startswith(CAMERAS):
        return []
    graph, tick = Graph(), Fraction(1, 1000)
    source = graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=tick)
    # Brightness only: rows of colour that were doubled, as on the way from 4:2:0 to 4:2:2, look woven where they move.
    filters = [graph.add("format", "gray"), graph.add("idet"), graph.add("buffersink")]
    graph.link_nodes(source, *filters).configure()
    for k, frame in enumerate(frames):
        frame.pts, frame.time_base = k, tick  # the filter drops frames without times
        graph.vpush(frame)
    graph.vpush(None)
    judged = [graph.vpull().metadata for _ in frames]
    return [tuple(each[f"lavfi.idet.{what}.current_frame"] for what in ("multiple", "repeated")) for each in judged]
