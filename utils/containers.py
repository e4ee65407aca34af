"""Video files as containers: how one is opened, which of its streams is the video, and what its times mean."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type

from .colours import Colour

DTS_ONLY = ("avi",)  # containers that store only when frames are decoded, not when they are shown
DTS_AT_TIMES = ("asf", "mxf")  # those that may do so
GUESSED = ("mpeg",)  # containers where only some frames have times: FFmpeg guesses the others
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # begins the part that holds the file's size
FLV_DURATION = b"\0\x08duration\0"  # precedes the number of seconds, 8 bytes, which are 0 where it is not known
AVI_HEAD = 8  # bytes, of which the last four say how many follow
UNTOLD = 2**32 - 1  # the size of an AVI that FFmpeg wrote into a pipe, or did not finish
# Filters that make a frame upright, by `upright_sides`. One that is only turned upside down has its rows in reverse in
# memory: a copy has them in order, as those take them who read its memory.
TURNS = {
    (1, 0, 0, 1): (),
    (-1, 0, 0, 1): ("hflip",),
    (1, 0, 0, -1): ("vflip", "copy"),
    (-1, 0, 0, -1): ("hflip", "vflip"),
    (0, 1, -1, 0): ("transpose=clock",),
    (0, -1, 1, 0): ("transpose=cclock",),
    (0, 1, 1, 0): ("transpose=cclock_flip",),
    (0, -1, -1, 0): ("transpose=clock_flip",),
}
MOV = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name
PRIMED = ("matroska,webm", "nut", "ogg", MOV)  # where below 0 lies what only helps to decode the sound from there on


@contextmanager
def opened(path: str | Path, **how) -> Iterator[av.container.InputContainer]:
    """A file to read. ValueError that names it where FFmpeg cannot. how: of `av_open`."""
    # PyAV's default, which older versions of torchvision change. Otherwise FFmpeg's threads log through Python and wait
    # for it, while Python, when it closes a file, waits for them.
    av.logging.set_level(None)
    with reading(path), av_open(path, **how) as container:
        if container.format.name == "hls" and container.duration is None:  # FFmpeg would wait for more
            way = "if it is over, add #EXT-X-ENDLIST to the list of its segments"
            raise ValueError(f"{path}: names no end, as of a live stream; {way}")
        yield container


def av_open(path: str | Path, mode: str = "r", **how) -> av.container.Container:
    """av.open, but titles that are not in UTF-8, as in many an old AVI, come as bytes, to be handed to another file."""
    spare_copies()
    if int(av.__version__.partition(".")[0]) < 19:  # which does so without being told, and no longer knows the option
        how["metadata_errors"] = "surrogateescape"
    return av.open(located(path), mode, **how)


@cache
def spare_copies() -> None:
    """From now on, forked processes never collect what they inherit: to free a decoder they would wait for ever for its
    threads, which they do not have."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn FFmpeg's errors into a ValueError that names the file."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be read as video ({error.strerror}); copy or make it again") from error


def located(path: str | Path) -> str:
    """A file's name for FFmpeg, which takes what precedes a colon in a relative one for a protocol."""
    return str(Path(path).absolute())  # not os.path.abspath, which resolves .. after a link wrongly


def packets(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator[av.Packet]:
    """The packets of a file, of all streams or of some. Streams that begin later than the file's first megabytes, as in
    recordings, are left out: PyAV does not know them, and may end in an IndexError because of them."""
    with suppress(IndexError):
        yield from container.demux(*streams)


def to_decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a video for its decoder, which refuses empty ones: there the frame before stays, as in Theora."""
    # PyAV's last packet, at the end of the stream, is empty, too, and has no time.
    return (packet for packet in packets(container, stream) if packet.size or packet.dts is None)


def video_stream(container: av.container.InputContainer, path: str | Path) -> av.VideoStream:
    """The video of a file. ValueError where there is none, or no decoder for it."""
    streams = [stream for stream in container.streams.video if not is_cover(stream)]
    if not streams:
        raise ValueError(f"{path}: no video in this file")
    taken = next((stream for stream in streams if stream.frames != 1), streams[0])  # AVIF begins with a still picture
    if taken.codec_context is None:
        raise ValueError(f"{path}: this FFmpeg has no decoder for it; convert it to another format first")
    return taken


def is_cover(stream: av.stream.Stream) -> bool:
    """Whether it is the cover picture of music or of a film."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def without_times(path: str | Path) -> frozenset[int]:
    """The numbers of the packets of a video that have no time in the file, behind the first that has one."""
    with opened(path, options={"fflags": "nofillin"}) as container:
        told = [packet.pts is not None for packet in to_decode(container, video_stream(container, path))]
    first = told.index(True) if True in told else len(told)
    return frozenset(number for number, known in enumerate(told) if number > first and not known)


def tells_decoding(container: av.container.InputContainer, times: Sequence[int | None]) -> bool:
    """Whether a container's times are those at which frames are decoded, not shown. times: of frames as shown."""
    kind = container.format.name
    return kind in DTS_ONLY or kind in DTS_AT_TIMES and _go_back(times)


def misleads(container: av.container.InputContainer, times: Sequence[int | None]) -> bool:
    """Whether times are not those at which frames are shown: see `tells_decoding`, or FFmpeg guesses them wrong, as of
    frames that are shown unequally long. times: of frames as shown."""
    return tells_decoding(container, times) or container.format.name in GUESSED and _go_back(times)


def _go_back(times: Sequence[int | None]) -> bool:
    known = [time for time in times if time is not None]
    return known != sorted(known)


def upright_sides(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Where the right and the lower side of a frame point to, (x, y) each, once it is upright: the display matrix
    without its scale and shift."""
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV gives no data at all beside a kind it does not know, such as a camera's EXIF
        angle = np.deg2rad(frame.rotation)
        sides = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    else:
        sides = np.eye(2) if matrix is None else np.frombuffer(matrix, "<i4", 9).reshape(3, 3)[:2, :2].astype(float)
        sides /= np.maximum(np.linalg.norm(sides, axis=1, keepdims=True), 1)
    return tuple(sides.round().astype(int).ravel().tolist())


def filtering(
    filters: Sequence[str], width: int, height: int, name: str, tick: Fraction
) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """A function that puts frames of this size and format through filters of FFmpeg, as those of TURNS. tick: of the
    frames' times."""
    if not filters:
        return lambda frame: frame
    graph = Graph()
    nodes = [graph.add_buffer(width=width, height=height, format=name, time_base=tick)]
    for text in filters:
        nodes.append(graph.add(*text.split("=")))
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()

    def filtered(frame: av.VideoFrame) -> av.VideoFrame:
        # Filters that do not take a format, as that of 4:2:2 to be laid on its side, are given another one, made with
        # the colours that the buffer was told of: without tags, or brightness and colours would become others.
        told = frame.colorspace, frame.color_range
        frame.colorspace, frame.color_range = Colour()[:2]
        graph.push(frame)
        made = graph.pull()
        for each in (frame, made):
            each.colorspace, each.color_range = told
        return made

    return filtered


def begins(container: av.container.InputContainer, stream: av.stream.Stream) -> Fraction:
    """The time that a container's times count from, in whole steps of a stream's. A recording's may begin anywhere, but
    those of MP4 say how long to wait, except `in_fragments`, and AVI has none."""
    kind, start = container.format.name, container.start_time or 0
    if kind in DTS_ONLY or kind == MOV and not in_fragments(container, stream):
        return Fraction(0)
    if kind in PRIMED:
        start = max(start, 0)
    return round(Fraction(start, av.time_base) / stream.time_base) * stream.time_base


def in_fragments(container: av.container.InputContainer, stream: av.stream.Stream) -> bool:
    """Whether a stream is of MP4 whose head lists no frames, as that of live streams, of which any part may be kept."""
    return container.format.name == MOV and not stream.frames


def tells_length(path: str | Path, kind: str) -> bool:
    """Whether a file says how long it lasts. Else FFmpeg goes by the last time in it, which in FLV counts from 0, not
    from its beginning; to that of Ogg it adds how late Opus begins. kind: FFmpeg's name for it."""
    if kind == "flv":
        with open(path, "rb") as file:
            return any(file.read(1 << 16).partition(FLV_DURATION)[2][:8])
    return kind != "ogg"


def stated_size(path: str | Path, kind: str) -> int:
    """How many bytes an AVI or ASF file says that it has; 0, or AVI_HEAD, where it does not say. kind: FFmpeg's name
    for it."""
    with open(path, "rb") as file:
        if kind == "asf":
            _, found, properties = file.read(1 << 16).partition(ASF_PROPERTIES)
            return int.from_bytes(properties[24:32], "little") if found else 0
        size = 0
        while kind == "avi" and file.read(4) == b"RIFF":  # a large file has several of these
            told = int.from_bytes(file.read(4), "little")
            size += AVI_HEAD + told * (told != UNTOLD)
            file.seek(size)
        return size
