"""Video out: video files, GIF, folders of PNG, y4m on standard output.

A file is made of parts, one for every few seconds, each encoded on its own: complete parts survive a kill, ranks make
parts side by side, and joining them copies packets without encoding again. A part keeps the exact times of frames.
"""

import heapq
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorRange, VideoReformatter

from . import io
from .hdr import Light, light_options
from .timeline import common
from .video import COPIED, DEEP, FROM_RGB, PIPE, SHALLOW, Colour, begins, bits, located, video_stream


class Codec(NamedTuple):
    """encoder: FFmpeg's name. crf: default quality, None for a lossless codec. options: the encoder's own. worst: the
    largest crf that it accepts."""

    encoder: str
    crf: int | None
    options: dict[str, str]
    worst: int = 63


CODECS = {
    "h264": Codec("libx264", 18, {"preset": "medium"}, 51),
    "h265": Codec("libx265", 20, {"preset": "medium", "x265-params": "log-level=error"}, 51),
    "av1": Codec("libsvtav1", 28, {"preset": "8"}),
    "vp9": Codec("libvpx-vp9", 28, {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"}),
    "ffv1": Codec("ffv1", None, {"level": "3"}),
}
DEFAULTS = {".mp4": "h264", ".m4v": "h264", ".mov": "h264", ".mkv": "h264", ".webm": "vp9"}
MP4 = (".mp4", ".m4v", ".mov")
ATTACHED = "attachment"  # FFmpeg's name for streams such as the fonts of subtitles
PART = ".mp4"  # whatever the output's format: it keeps times exactly, and the order of decoding
LOSSLESS = "ffv1"
RAW = "y4m"  # no codec: frames as they are, down a pipe
KEPT = re.compile(r"(gray)|yuva?j?(420|422|444)p")  # formats whose chroma these two keep
PNG = "png"  # a folder of pictures
# Bits per colour that are kept, where not 8: few players take H.264 of 10.
DEPTHS = {"h265": 10, "av1": 10, LOSSLESS: 10, PNG: 16}
OF_THE_FILE = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration")  # not of its content
MOST = 2**31 - 1  # ticks in a second, and from a frame to the next: containers count in 32 bits
FASTEST_GIF = 100  # frames a second
PICTURE = re.compile(r"\d{8}\.png")
GIF_TICK = Fraction(1, 100)
PRIMING = Fraction(1, 20)  # seconds before the start that audio decoders need
# A palette of its own for every frame, so that memory does not grow with the length.
GIF_FILTERS = ("split", "palettegen=stats_mode=single", "paletteuse=new=1")


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
        kept, depth = KEPT.match(self.keep), "10le" * self.deep
        if self.codec not in (LOSSLESS, RAW) or self.codec == RAW and not kept:
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
            full = self.pix_fmt.startswith("gray")  # see video.with_chroma
            extent = ColorRange.JPEG if full else self.colour.conversion(self.height)[1]
            context.colorspace, context.color_range = self.colour.matrix, extent
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer

    @property
    def even(self) -> bool:
        """Whether sides must be even numbers."""
        return self.codec not in (LOSSLESS, RAW)

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height in a file of this codec."""
        more = int(self.even)
        return self.width + more * (self.width % 2), self.height + more * (self.height % 2)

    @property
    def exact_tick(self) -> Fraction:
        """The unit in which the origin is a whole number, too."""
        tick = common(self.tick, self.origin) if self.origin else self.tick
        fits = tick.denominator <= MOST and (self.longest or 1 / self.rate) / tick < MOST / 2
        return tick if fits else Fraction(1, 90000)  # MPEG's

    @property
    def movie_options(self) -> dict[str, str]:
        """For MP4, which stores when a stream begins and how long it is shown in a unit of its own, by default
        milliseconds."""
        return {"movie_timescale": str(self.exact_tick.denominator)}

    @property
    def nominal(self) -> Fraction:
        """The rate as a file can store it."""
        return self.rate.limit_denominator(MOST // (2 * ceil(self.rate)))


class VideoWriter:
    """One video file, or a stream (file: an object to write to, container: its format)."""

    def __init__(self, path: Path | str, form: Format, file=None, container: str | None = None):
        self.path, self.form, self.written, self.end = path, form, 0, None
        self.reformatter = VideoReformatter()
        codec = CODECS[form.codec] if file is None else Codec("wrapped_avframe", None, {})
        options = form.movie_options if file is None else {}
        with errors(path):
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
            stream.options = light_options(form.codec, form.light, options)
        try:
            with usual_priority():
                stream.codec_context.open()
        except av.FFmpegError as error:  # of the size, as H.264 beyond 16384 columns, or the rate, as AV1 beyond 240
            what = f"frames of {stream.width}x{stream.height}, {float(form.nominal):g} a second"
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
        with errors(self.path):
            packets = self.stream.encode(frame)
            for packet in packets:
                if packet.pts == frame.pts:  # encoders with delay do not set it, nor do all without
                    packet.duration = frame.duration
            self.output.mux(packets)
        self.written += 1

    def close(self) -> None:
        with errors(self.path):
            packets = self.stream.encode(None)
            if self.written <= 2 and self.form.codec == "h265":  # x265 makes up their times of decoding
                for packet in packets:
                    packet.dts = packet.pts
            if packets and self.end:  # a container's end is that of the packet decoded last
                packets[-1].duration = self.end - packets[-1].pts
            self.output.mux(packets)
            self.output.close()

    def abandon(self) -> None:
        try:
            self.output.close()
        except av.FFmpegError:
            pass  # it is thrown away anyway

    def _converted(self, image: np.ndarray, original: av.VideoFrame | None) -> av.VideoFrame:
        form = self.form
        odd = form.even and (form.width % 2 or form.height % 2)
        usable = original is not None and not odd and not form.rgb
        if usable and not original.format.is_rgb and not original.format.has_palette:
            extent = {"src_color_range": self.range, "dst_color_range": self.range}
            return self.reformatter.reformat(
                original, format=form.pix_fmt, src_colorspace=self.matrix, dst_colorspace=self.matrix, **extent
            )
        if odd:
            image = np.pad(image, ((0, form.height % 2), (0, form.width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=DEEP if form.deep else SHALLOW)
        if form.rgb:
            return self.reformatter.reformat(frame, format=form.pix_fmt)
        return self.reformatter.reformat(
            frame,
            format=form.pix_fmt,
            src_colorspace=self.matrix,
            dst_colorspace=self.matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=self.range,
            interpolation=FROM_RGB,
        )


class FolderWriter:
    """A folder of PNG files, numbered from 1."""

    def __init__(self, path: Path, form: Format):
        self.path, self.written = path, 0
        path.mkdir(parents=True)

    def write(self, image: np.ndarray, *_) -> None:
        self.written += 1
        io.write_image(self.path / f"{self.written:08d}.png", image)

    def close(self) -> None:
        pass

    abandon = close


def pipe_writer(form: Format) -> VideoWriter:
    """y4m on standard output."""
    return VideoWriter("standard output", form, _Aspect(sys.stdout.buffer, form.aspect), "yuv4mpegpipe")


class _Aspect:
    """A file to write y4m to. PyAV cannot give the muxer the aspect of pixels, and writes A0:0 for unknown."""

    def __init__(self, file, aspect: Fraction):
        self.file, self.aspect = file, b"A%d:%d" % (aspect.numerator, aspect.denominator)

    def write(self, data: bytes) -> int:
        data = bytes(data)
        if self.aspect:
            data, self.aspect = data.replace(b"A0:0", self.aspect, 1), None
        try:
            self.file.write(data)
        except OSError as error:  # the reader has gone
            raise OSError(error.errno, error.strerror, "standard output") from error
        return len(data)

    def flush(self) -> None:
        self.file.flush()


# Joining


def join_folders(parts: Sequence[Path], out: Path) -> None:
    """The pictures of all parts, numbered consecutively; hard links rather than copies where the disk has them."""
    with _replacing_folder(out) as temporary:
        pictures = (picture for part in parts for picture in io.list_images(part))
        for number, picture in enumerate(pictures, 1):
            numbered = temporary / f"{number:08d}.png"
            try:
                numbered.hardlink_to(picture)
            except OSError:  # a disk without hard links
                shutil.copyfile(picture, numbered)


def join_gif(parts: Sequence[Path], out: Path) -> None:
    """One animation that repeats, out of video parts."""
    with io.replacing(out, parts[0].parent) as temporary, errors(out), av.open(located(temporary), "w") as output:
        stream, graph, ticks = None, None, -1
        for frame in _decoded(parts):
            if stream is None:
                graph = _palette_graph(frame)
                stream = output.add_stream("gif", rate=100)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "pal8"
                stream.codec_context.time_base = GIF_TICK
            moment, shown = (round(n * frame.time_base / GIF_TICK) for n in (frame.pts, frame.duration))
            ticks = max(moment, ticks + 1)
            graph.push(frame)
            reduced = graph.pull()
            reduced.pts, reduced.time_base = ticks, GIF_TICK
            for packet in stream.encode(reduced):
                packet.duration = shown  # nothing else tells how long the last one is shown
                output.mux(packet)
        output.mux(stream.encode(None))


def join_videos(
    parts: Sequence[Path], out: Path, form: Format, source: str | None = None, whole: bool = True, timed: bool = True
) -> None:
    """One file out of parts, packet by packet, with the metadata and chapters of the file `source`, and the sound and
    subtitles of it that the output can hold. whole: False leaves out chapters, and ends sound and subtitles where the
    pictures end. timed: False leaves out all that has a time, because times have changed."""
    with io.replacing(out, parts[0].parent) as temporary, errors(out):
        mp4 = out.suffix.lower() in MP4
        options = {"movflags": "+faststart"} | form.movie_options if mp4 else {}
        named = located(temporary)
        with av.open(named, "w", muxer(out), options=options) as output, av.open(located(parts[0])) as first:
            video = output.add_stream_from_template(first.streams.video[0], opaque=True)
            video.codec_context.framerate = form.nominal
            video.codec_context.sample_aspect_ratio = form.aspect
            form.tag(video.codec_context)  # some codecs' frames do not carry this, and parts do not carry all of it
            if first.streams.video[0].codec_context.name == "hevc" and mp4:
                video.codec_context.codec_tag = "hvc1"  # what Apple's players ask for
            packets = [_video_packets(parts, video)]
            if source is not None:
                container = av.open(located(source))
                streams = {}
                for stream in container.streams if timed else ():
                    if stream.type == ATTACHED and holds(out, source, stream.index):
                        name, kind = stream.name or "attachment", stream.mimetype or "application/octet-stream"
                        output.add_attachment(name, kind, stream.data)
                    elif stream.type in COPIED and holds(out, source, stream.index):
                        streams[stream.index] = output.add_stream_from_template(stream, opaque=True)
                        streams[stream.index].metadata.update(stream.metadata)
                        streams[stream.index].disposition = stream.disposition
                shown = video_stream(container, source).metadata
                video.metadata.update({name: shown[name] for name in ("language", "title") if name in shown})
                about = {k: v for k, v in container.metadata.items() if k.lower() not in OF_THE_FILE}
                output.metadata.update(about)
                if whole and timed:
                    output.set_chapters(container.chapters())
                end = None if whole else _end(parts[-1])
                packets.append(_other_packets(container, streams, end))
            for _, _, packet in heapq.merge(*packets):
                output.mux(packet)
            if source is not None:
                container.close()


def _video_packets(parts: Sequence[Path], video: av.VideoStream) -> Iterator[tuple]:
    latest = None
    for part in parts:
        with av.open(located(part)) as container:
            stream = container.streams.video[0]
            end = (stream.start_time or 0) + (stream.duration or 0)
            for number, packet in enumerate(container.demux(stream), start=1):
                if not packet.size:
                    continue
                if number == stream.frames and "vp9" in stream.codec_context.name and packet.pts < end:
                    packet.duration = end - packet.pts  # where FFmpeg assumes the usual duration
                # An encoder that reorders frames starts its dts before its first frame; with frames of unequal length,
                # possibly before the end of the previous part.
                dts = packet.dts * packet.time_base
                if latest is not None and dts <= latest:
                    packet.dts = int(latest / packet.time_base) + 1
                latest = packet.dts * packet.time_base
                packet.stream = video
                yield latest, 0, packet


def _other_packets(container: av.container.InputContainer, streams: dict, end: Fraction | None) -> Iterator[tuple]:
    if not streams:
        return
    given, latest = [container.streams[index] for index in streams], {}
    begin = {stream.index: round(begins(container, stream) / stream.time_base) for stream in given}
    for number, packet in enumerate(container.demux(given)):
        index, moment = packet.stream.index, packet.pts if packet.dts is None else packet.dts
        if moment is None or packet.stream.type == "audio" and moment <= latest.get(index, moment - 1):
            continue  # it has no time, or goes back a little, which no container accepts
        latest[index] = moment
        for name in ("pts", "dts"):
            if getattr(packet, name) is not None:
                setattr(packet, name, getattr(packet, name) - begin[index])
        time = (moment - begin[index]) * packet.time_base
        if packet.is_discard and time < -PRIMING:  # cut away by an edit list, which not every container has
            continue
        if end is None or time < end:
            packet.stream = streams[index]
            yield time, 1 + number, packet


def _decoded(parts: Sequence[Path]) -> Iterator[av.VideoFrame]:
    for part in parts:
        with av.open(located(part)) as container:
            yield from container.decode(video=0)


def _end(part: Path) -> Fraction:
    return max(frame.pts * frame.time_base for frame in _decoded([part]))


def _palette_graph(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    split, palette, use = (graph.add(*text.split("=", 1)) for text in GIF_FILTERS)
    sink = graph.add("buffersink")
    buffer.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


@contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    temporary = out.with_name(f".{out.name}.joined")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(out, ignore_errors=True)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def errors(path: Path | str) -> Iterator[None]:
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


def muxer(out: Path) -> str:
    """FFmpeg's name for the container; its own choice for .m4v takes only H.264."""
    return {".mkv": "matroska", ".m4v": "mp4"}.get(out.suffix.lower(), out.suffix.lower()[1:])


def holds(out: Path, path: str, index: int) -> bool:
    """Whether the container of `out` can hold a stream of the file `path` as it is: some only refuse it later."""
    try:
        with av.open(located(path)) as container, av.open(BytesIO(), "w", muxer(out)) as trial:
            if container.streams[index].type == ATTACHED:
                return muxer(out) == "matroska"
            stream = trial.add_stream_from_template(container.streams[index], opaque=True)
            packet = next(packet for packet in container.demux(index) if packet.pts is not None or not packet.size)
            if packet.size:
                packet.stream = stream
                trial.mux(packet)
    except (ValueError, av.FFmpegError):
        return False
    return True


def left_out(path: str, out: Path) -> Iterator[str]:
    """A line for each stream of a file that its output cannot hold."""
    with errors(path), av.open(located(path)) as container:
        for stream in container.streams:
            if stream.type in (*COPIED, ATTACHED) and not holds(out, path, stream.index):
                name = stream.name if stream.type == ATTACHED else stream.codec_context.name
                kind = f"{stream.type} (stream {stream.index}, {name})"
                yield f"{out}: {kind} cannot be stored in {out.suffix} and is left out; use .mkv"


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
    if not 0 <= crf <= CODECS[codec].worst:
        raise ValueError(f"--crf {crf}: {codec} takes 0 to {CODECS[codec].worst}")


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
