"""Video out: writers of video files, folders of PNG, and y4m on standard output; what kinds of output there are.

A result is made of parts, one for every few seconds, each written on its own; video_join.py joins them.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from io import BytesIO
from itertools import chain
from math import ceil
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, VideoReformatter

from . import io
from .colours import SHALLOW, Colour, bits, is_rgb, to_gbr, to_yuv, with_layout
from .containers import filtering, located
from .hdr import Light, light_options
from .timeline import common
from .video import PIPE


class Codec(NamedTuple):
    """encoder: FFmpeg's name. crf: default quality, None for a lossless codec. options: the encoder's own. worst, best:
    the largest and the smallest crf that it accepts."""

    encoder: str
    crf: int | None
    options: dict[str, str]
    worst: int = 63
    best: int = 0


# Run by several threads, x264's code for AVX-512 makes different files of the same frames.
REPEATABLE = {"x264-params": "asm=avx2"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}
CODECS = {
    "h264": Codec("libx264", 18, {"preset": "medium"} | REPEATABLE, 51),
    "h265": Codec("libx265", 20, {"preset": "medium", "x265-params": "log-level=error"}, 51),
    "av1": Codec("libsvtav1", 28, {"preset": "8"}, best=1),  # FFmpeg takes 0 for no wish
    "vp9": Codec("libvpx-vp9", 28, {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"}),
    "ffv1": Codec("ffv1", None, {"level": "3"}),
}
DEFAULTS = {".mp4": "h264", ".m4v": "h264", ".mov": "h264", ".mkv": "h264", ".webm": "vp9"}
MP4 = (".mp4", ".m4v", ".mov")
PART = ".mp4"  # whatever the output's format: it keeps times exactly, and the order of decoding
LOSSLESS = "ffv1"
RAW = "y4m"  # no codec: frames as they are, down a pipe
# Formats whose chroma these two keep, with the bits per colour.
KEPT = {
    LOSSLESS: re.compile(r"(gray)|yuva?j?(410|411|420|422|440|444)p"),
    RAW: re.compile(r"(gray)|yuva?j?(411|420|422|444)p"),
}
PNG = "png"  # a folder of pictures
# Bits per colour that are kept, where not 8: few players take H.264 of 10.
DEPTHS = {"h265": 10, "av1": 10, LOSSLESS: 10, PNG: 16}
CRASHING = range(33, 50)  # widths at which x265 4.2 writes past its memory, which ends the process
ENDLESS = 64, 26  # SVT-AV1 never ends where one side is longer than this, and the other shorter than that
COARSE = 10  # crf below which SVT-AV1's preset 8 spoils the second and the fourth frame of 10 bits
MOST = 2**31 - 1  # ticks in a second, and from a frame to the next: containers count in 32 bits
MPEG = 90000  # units in a second, as MPEG counts
FASTEST_GIF, FASTEST_MATROSKA = 100, 1000  # frames a second
PICTURE = re.compile(r"\d{8}\.png")


class Format(NamedTuple):
    """How frames are written. rate: nominal frames a second. tick: the unit of all times. origin: time of the first
    frame in the file. longest: time from a frame to the next, where not 1 / rate. aspect: of a pixel. keep: the pixel
    format of the input: its bits are kept up to those of DEPTHS, and its chroma by a lossless codec. light: see hdr."""

    width: int
    height: int
    rate: Fraction
    tick: Fraction
    origin: Fraction = Fraction(0)
    longest: Fraction | None = None
    codec: str = "h264"
    crf: int | None = None
    colour: Colour = Colour()
    aspect: Fraction = Fraction(1)
    keep: str = "yuv420p"
    light: Light = Light()

    @property
    def depth(self) -> int:
        """How many of the input's bits per colour are kept."""
        return min(bits(self.keep), DEPTHS.get(self.codec, 8))

    @property
    def deep(self) -> bool:
        """Whether frames are uint16, not uint8."""
        return self.depth > 8

    @property
    def pix_fmt(self) -> str:
        kept, depth = self.codec in KEPT and KEPT[self.codec].match(self.keep), "10le" * self.deep
        if self.codec != LOSSLESS and not kept:
            return f"yuv420p{depth}"  # what every player plays
        if kept:
            return (kept[1] or f"yuv{kept[2]}p") + depth
        return f"gbrp{depth}" if depth else "bgr0"

    @property
    def rgb(self) -> bool:
        """Whether a file holds RGB."""
        return av.VideoFormat(self.pix_fmt).is_rgb

    def tag(self, context: av.VideoCodecContext) -> None:
        """Tag a stream with how its colours are meant."""
        if not self.rgb:
            full = self.pix_fmt.startswith("gray")  # see colours.plain
            extent = ColorRange.JPEG if full else self.colour.conversion(self.height)[1]
            context.colorspace, context.color_range = self.colour.matrix, extent
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height in a file of this codec: even numbers, except of a lossless one and of raw frames."""
        if self.codec in (LOSSLESS, RAW):
            return self.width, self.height
        return self.width + self.width % 2, self.height + self.height % 2

    @property
    def exact_tick(self) -> Fraction:
        """The unit in which the origin is a whole number, too."""
        tick = common(self.tick, self.origin) if self.origin else self.tick
        fits = tick.denominator <= MOST and (self.longest or 1 / self.rate) / tick < MOST / 2
        return tick if fits else Fraction(1, MPEG)

    @property
    def movie_options(self) -> dict[str, str]:
        """For MP4, which stores when a stream begins and how long it is shown in a unit of its own, by default
        milliseconds: a whole part of the tick, and short enough for sound."""
        ticks = self.exact_tick.denominator
        return {"movie_timescale": str(ticks * ceil(MPEG / ticks))}

    @property
    def nominal(self) -> Fraction:
        """The rate as a file can store it."""
        return self.rate.limit_denominator(MOST // (2 * ceil(self.rate)))


class VideoWriter:
    """One video file, or a stream (file: an object to write to, container: its format)."""

    def __init__(self, path: Path | str, form: Format, file=None, container: str | None = None):
        self.path, self.form, self.written, self.end = path, form, 0, None
        self.packets: list[av.Packet] = []  # encoded, not yet stored
        self.reformatter, self.progressive = VideoReformatter(), None
        codec = CODECS[form.codec] if file is None else Codec("wrapped_avframe", None, {})
        options = form.movie_options if file is None else {}
        with writing(path):
            self.output = av.open(file or located(path), "w", format=container, options=options)
            stream = self.output.add_stream(codec.encoder, rate=form.nominal)
            stream.width, stream.height = form.stored
            stream.pix_fmt = form.pix_fmt
            context = stream.codec_context
            stream.time_base = context.time_base = form.exact_tick
            context.sample_aspect_ratio = form.aspect
            self.matrix, self.range = form.colour.conversion(form.height)
            form.tag(context)
            quality = codec.crf if form.crf is None else form.crf
            options = codec.options | ({} if codec.crf is None else {"crf": str(quality)})
            if form.codec == "av1" and form.deep and quality < COARSE:
                options["preset"] = "7"
            stream.options = light_options(form.codec, form.light, options)
        what = f"frames of {stream.width}x{stream.height}, {float(form.nominal):g} a second"
        if codec.encoder == "libx265" and stream.width in CRASHING:
            raise ValueError(f"{what}: {form.codec} cannot encode this width; change --codec")
        if codec.encoder == "libsvtav1" and max(form.stored) > ENDLESS[0] and min(form.stored) < ENDLESS[1]:
            raise ValueError(f"{what}: {form.codec} cannot encode frames this narrow or flat; change --codec")
        try:
            with usual_priority():
                stream.codec_context.open()
        except av.FFmpegError as error:  # of the size, as H.264 beyond 16384 columns, or the rate, as AV1 beyond 240
            raise ValueError(f"{what}: {form.codec} cannot encode them ({error.strerror}); change --codec") from error
        self.stream = stream

    def write(
        self,
        image: np.ndarray,
        time: Fraction,
        original: av.VideoFrame | None = None,
        lasts: Fraction | None = None,
    ) -> None:
        """One frame, RGB (H, W, 3), uint16 if the form is deep, else uint8, or `original`, from the decoder, where that
        can be written unchanged. lasts: how long it is shown, where not 1 / rate or until the next."""
        frame = self._converted(image, original)
        frame.pts = round((self.form.origin + time) / self.form.exact_tick)
        frame.time_base = self.form.exact_tick
        frame.duration = round((lasts or 1 / self.form.rate) / self.form.exact_tick)
        frame.pict_type = 0  # the encoder decides
        self.end = frame.pts + frame.duration if lasts else None
        with writing(self.path):
            # In one call: an interrupt, which comes as encode returns, must not lose what other frames refer to.
            self.packets.extend(chain.from_iterable(map(self.stream.encode, [frame])))
            packets, self.packets = self.packets, []
            for packet in packets:
                if packet.pts == frame.pts:  # encoders with delay do not set it, nor do all without
                    packet.duration = frame.duration
            self.output.mux(packets)
        self.written += 1

    def close(self) -> None:
        with writing(self.path):
            packets = self.packets + self.stream.encode(None)
            if self.written <= 2 and self.form.codec == "h265":  # x265 makes up their times of decoding
                for packet in packets:
                    packet.dts = packet.pts
            if packets and self.end:  # a container's end is that of the packet decoded last
                packets[-1].duration = self.end - packets[-1].pts
            self.output.mux(packets)
            self.output.close()

    def abandon(self) -> None:
        with suppress(av.FFmpegError):  # it is thrown away anyway
            self.output.close()

    def _converted(self, image: np.ndarray, original: av.VideoFrame | None) -> av.VideoFrame:
        form = self.form
        odd = form.stored != (form.width, form.height)
        if original is not None and not odd and not form.rgb and not is_rgb(original):
            frame = with_layout(original, form.pix_fmt, self.matrix, self.range, self.reformatter)
            if frame.interlaced_frame:  # FFV1 says so of each frame, and of those between it cannot
                how = form.width, form.height, form.pix_fmt, form.exact_tick
                self.progressive = self.progressive or filtering(("setfield=prog",), *how)
                frame = self.progressive(frame)
            return frame
        if odd:
            image = np.pad(image, ((0, form.height % 2), (0, form.width % 2), (0, 0)), mode="edge")
        if form.rgb and form.deep:
            return to_gbr(image, form.pix_fmt)
        if form.rgb:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=SHALLOW)
            return self.reformatter.reformat(frame, format=form.pix_fmt)
        return to_yuv(image, form.pix_fmt, self.matrix, self.range, self.reformatter)


class FolderWriter:
    """A folder of PNG files, numbered from 1."""

    def __init__(self, path: Path, form: Format):
        self.path, self.written = path, 0
        path.mkdir(parents=True)

    def write(self, image: np.ndarray, *_) -> None:
        io.write_image(self.path / f"{self.written + 1:08d}.png", image)
        self.written += 1  # not before: an interrupt leaves no picture

    def close(self) -> None:
        pass

    abandon = close


def pipe_writer(form: Format) -> VideoWriter:
    """y4m on standard output."""
    file = sys.stdout.buffer
    file = getattr(file, "raw", file)  # what is left in a buffer on a full disk would fail once more as Python exits
    return VideoWriter("standard output", form, _Aspect(file, form.aspect), "yuv4mpegpipe")


class _Aspect:
    """A file to write y4m to. PyAV cannot give the muxer the aspect of pixels, and writes A0:0 for unknown."""

    def __init__(self, file, aspect: Fraction):
        self.file, self.aspect = file, b"A%d:%d" % (aspect.numerator, aspect.denominator)

    def write(self, data: bytes) -> int:
        data = bytes(data)
        if self.aspect:
            data, self.aspect = data.replace(b"A0:0", self.aspect, 1), None
        left = memoryview(data)
        try:
            while left:  # a file without a buffer takes what the disk has room for
                left = left[self.file.write(left) :]
        except OSError as error:  # the reader has gone
            raise OSError(error.errno, error.strerror, "standard output") from error
        return len(data)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn FFmpeg's errors into an OSError that names the file."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def usual_priority() -> Iterator[None]:
    """Leave this process and its new threads the priority that it has: where it may, as for root, SVT-AV1 gives all of
    them real-time priority for good, and other programs stand still."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in map(int, os.listdir("/proc/self/task")) if os.sched_getscheduler(0) != policy else ():
            with suppress(ProcessLookupError):  # it has ended
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, parameters)


# Checks


def muxer(out: Path) -> str:
    """FFmpeg's name for the container; its own choice for .m4v takes only H.264."""
    return {".mkv": "matroska", ".m4v": "mp4"}.get(out.suffix.lower(), out.suffix.lower()[1:])


def default_codec(kind: str, deep: bool) -> str:
    """The codec of a kind of video file. deep: for more than 8 bits per colour, see DEPTHS."""
    return "h265" if deep and DEFAULTS[kind] == "h264" else DEFAULTS[kind]


def check_codec(out: Path, codec: str) -> None:
    """ValueError where the container of `out` cannot hold what a codec makes."""
    try:
        with av.open(BytesIO(), "w", muxer(out)) as trial:
            stream = trial.add_stream(CODECS[codec].encoder, rate=25, options=CODECS[codec].options)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            with usual_priority():
                trial.start_encoding()
    except (ValueError, av.FFmpegError) as error:
        raise ValueError(f"{out}: {codec} cannot be stored in {out.suffix}; use .mkv") from error


def check_crf(codec: str, crf: int) -> None:
    """ValueError for a quality that a codec does not accept: encoders silently replace some of those."""
    if CODECS[codec].crf is None:
        raise ValueError(f"--crf {crf}: {codec} is lossless; leave it out, or give another --codec")
    best, worst = CODECS[codec].best, CODECS[codec].worst
    if not best <= crf <= worst:
        raise ValueError(f"--crf {crf}: {codec} takes {best} to {worst}")


def check_folder(out: Path) -> None:
    """OSError where this is no folder to write to, ValueError where replacing it would lose more than our pictures."""
    io.check_writable(out)
    for path in out.iterdir() if out.exists() else ():
        if not PICTURE.fullmatch(path.name):
            raise ValueError(f"{out}: also holds {path.name}, which would be lost; name a folder of its own")


def kind_of(out: str) -> str:
    """ "pipe", "folder", ".gif" or the ending of a video file. ValueError for an ending that is not known."""
    suffix = Path(out).suffix.lower()
    if out == PIPE:
        return "pipe"
    name = Path(out).name.lower()
    if name == ".gif" or name in DEFAULTS:
        raise ValueError(f"{out}: is an ending without a name; is a variable not set?")
    if not suffix or out.endswith(("/", os.sep)) or Path(out).is_dir():
        return "folder"
    if suffix != ".gif" and suffix not in DEFAULTS:
        raise ValueError(f"{out}: unknown kind of output; end it in {', '.join(DEFAULTS)}, .gif, or name a folder")
    return suffix
