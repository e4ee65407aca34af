"""Video in: any file that FFmpeg reads (PyAV bundles it), a folder of pictures, a y4m pipe.

    source = video.open_source("in.mp4")
    for frame in source.frames(start=Fraction(10)):
        frame.time, frame.image

Frames are upright, RGB (H, W, 3), uint8, or uint16 where that is asked for; times are Fractions, in seconds from the
first frame. A fault in a file is a ValueError or FileNotFoundError that names it.
"""

import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import av
from av.video.reformatter import VideoReformatter

from . import fields, io, scan
from .colours import DEEP, FULL, RGB, SHALLOW, Colour, is_rgb, plain, plain_format, to_rgb
from .containers import (
    TURNS,
    begins,
    filtering,
    is_cover,
    opened,
    reading,
    tells_decoding,
    to_decode,
    upright_sides,
    video_stream,
    without_times,
)
from .hdr import Light, light_of
from .shots import evened
from .timeline import Frame, snapped

PIPE = "-"
DISCARD_ALL = 48  # FFmpeg's number for a stream that nobody should read
LEAP_AHEAD = 6 * 3600  # seconds: no container can hold a frame of seven hours in every unit of time
COPIED = ("audio", "subtitle")  # streams that are copied to the output
FILM_STEP = Fraction(1, 15)  # seconds: the longer one of film with 3:2 pulldown takes 1/20 on a display of 60 Hz
LOOKED_AT = 8  # frames by which it is told what the others are like
OTHER_PICTURES = (".bmp", ".webp", ".tif", ".tiff", ".exr", ".heic", ".avif", ".gif")  # which utils.io does not read


class Source:
    """What all inputs have in common.

    paths: the files it is read from. width, height: of upright frames. rate: frames a second, nominal. step: the unit
    of the input's times. origin: time of the first frame in the file; begin: what the file's times count from. count:
    frames, and last: time of the last one; None where only reading can tell. longest: the longest time between two
    frames, and usual: the median of these times; None for pictures and y4m, which come at one rate. hold: how long the
    last one is shown; steady: whether all are shown equally long. aspect: of a pixel. pix_fmt: FFmpeg's name of the
    pixels' format, once upright. colour, light: see colours, hdr. has_copied: whether there is sound or subtitles.
    notes: what a user should know, one line each. damaged: frames skipped as damaged so far.
    """

    path: str
    paths: list[Path]
    width: int
    height: int
    rate: Fraction
    step: Fraction
    origin = begin = Fraction(0)
    count: int | None = None
    last: Fraction | None = None
    longest: Fraction | None = None
    usual: Fraction | None = None
    hold: Fraction
    steady = True
    colour = Colour()
    light = Light()
    aspect = Fraction(1)
    pix_fmt = SHALLOW
    has_copied = False
    damaged = 0
    notes: tuple[str, ...] = ()

    def frames(self, start: Fraction = Fraction(0), deep: bool = False) -> Iterator[Frame]:
        """The frames from `start` on. deep: as uint16, from 0 to 65535."""
        raise NotImplementedError


def open_source(path: str, rate: Fraction = Fraction(24)) -> Source:
    """A video file, a folder of pictures shown at `rate`, or "-" for y4m on standard input."""
    if path == PIPE:
        return Pipe()
    if not path:
        raise ValueError("the input has no name; is a variable not set?")
    if Path(path).is_dir():
        return Folder(path, rate)
    if not Path(path).is_file():
        if Path(path).exists():
            raise ValueError(f"{path}: is a pipe or a device; give - and pipe y4m in: ffmpeg -i IN -f yuv4mpegpipe -")
        raise FileNotFoundError(f"{path}: no such video file or folder of pictures")
    return Video(path)


class Folder(Source):
    """A folder of pictures, in the order of their names."""

    def __init__(self, path: str, rate: Fraction):
        self.paths = io.list_images(path)
        self.path, self.rate, self.step, self.hold = path, rate, 1 / rate, 1 / rate
        self.count, self.last = len(self.paths), (len(self.paths) - 1) / rate
        self.height, self.width = io.read_image(self.paths[0], deep=True).shape[:2]
        self.pix_fmt = DEEP if io.is_deep(self.paths[0]) else SHALLOW
        others = {other.suffix.lower() for other in Path(path).iterdir()} & set(OTHER_PICTURES)
        if others:
            self.notes += (f"{path}: pictures in {', '.join(sorted(others))} are skipped; convert them first",)
        if gaps := io.gaps(self.paths):
            where = f"after {self.paths[gaps[0]].name}" + f" and {len(gaps) - 1} more" * (len(gaps) > 1)
            self.notes += (f"{path}: frames are missing {where}; motion is interpolated across them",)
        _check_count(self)

    def frames(self, start: Fraction = Fraction(0), deep: bool = False) -> Iterator[Frame]:
        for i in range(-int(-start * self.rate // 1), self.count):
            image = io.read_image(self.paths[i], deep)
            if image.shape[:2] != (self.height, self.width):
                sizes = f"{image.shape[1]}x{image.shape[0]}, but {self.paths[0].name} is {self.width}x{self.height}"
                raise ValueError(f"{self.paths[i]}: {sizes}; frames must have one size")
            yield Frame(i / self.rate, image)


class Video(Source):
    """A file. Its packets are read once, without decoding, to learn when frames are shown and whether it is whole.

    untold: the numbers of packets whose times FFmpeg guesses wrong. even: of film that is stored unevenly, see
    shots.evened, for each time that becomes another one the latter. coded_rate: frames a second by what the codec
    says; field: how long a field is shown where packets may hold one, see fields.length.
    """

    def __init__(self, path: str):
        self.path, self.paths = path, [Path(path)]
        self.untold: frozenset[int] = frozenset()
        self.even: dict[Fraction, Fraction] = {}
        with opened(self.path) as container:
            stream = video_stream(container, path)
            self.rate = stream.guessed_rate or stream.average_rate or Fraction(25)
            self.step = stream.time_base
            self.begin = begins(container, stream)
            self.has_copied = any(other.type in COPIED for other in container.streams)
            self.notes += _stream_notes(path, container, stream)
            context = stream.codec_context  # which tells what the container says, until a decoder sets it
            told = Colour(context.colorspace, context.color_range, context.color_primaries, context.color_trc)
            first = list(islice(self._decode(container, stream), LOOKED_AT))
            if not first:
                raise ValueError(f"{path}: not a single frame can be decoded; convert it to another format first")
            self.dts_only = tells_decoding(container, [frame.pts for frame in first])
            self._describe(first[0], stream, told)
            self.coded_rate = context.framerate or self.rate
            self.field = fields.length(first, context.framerate, self.step)
            if note := fields.note(path, first):
                self.notes += (note,)
        self.damaged = 0  # those before the first frame are met again
        self._scan()
        _check_count(self)

    def frames(self, start: Fraction = Fraction(0), deep: bool = False) -> Iterator[Frame]:
        latest, before = None, self.damaged
        damaged = before
        for frame in self._frames(start, "AUTO", deep):
            latest, damaged = frame.time, self.damaged
            yield frame
        # When several frames are decoded at once, PyAV drops those after a damaged one at the end of a file.
        if latest is None and start <= self.last:
            self.damaged = before
            yield from self._frames(start, "SLICE", deep)
        elif latest is not None and latest < self.last:
            self.damaged = damaged if self.timed else before  # without those that are met again
            yield from (frame for frame in self._frames(latest, "SLICE", deep) if frame.time > latest)

    def _frames(self, start: Fraction, threads: str, deep: bool) -> Iterator[Frame]:
        turn = filtering(self.filters, *self.coded, self.step)
        reformatter, other = VideoReformatter(), VideoReformatter()
        # Seek indices are approximate: where one leads past `start`, or to nothing at all, seek further back.
        for back in [back for back in (0, 2, 10) if back < start and self.timed] + [None]:
            before, found, latest = self.damaged, False, None
            with opened(self.path) as container:
                stream = video_stream(container, self.path)
                stream.thread_type = threads
                if back is not None:
                    try:
                        container.seek(int((self.origin + start - back) / self.step), stream=stream)
                    except av.FFmpegError:  # some containers cannot seek at all, or not to the last frames
                        continue
                for frame, time in self._timed(container, stream, start):
                    if latest is None and back is not None and time > start:
                        self.damaged = before  # they are met again
                        break
                    if latest is not None and time <= latest:
                        self.damaged += time >= start
                        continue
                    latest = time
                    if time >= start:
                        found = True
                        if (frame.width, frame.height) != self.coded[:2]:
                            sizes = f"{frame.width}x{frame.height}, not {self.coded[0]}x{self.coded[1]}"
                            raise ValueError(
                                f"{self.path}: from {float(time):.2f} s on frames are {sizes}; give them one size: "
                                "ffmpeg -i IN -vf scale=W:H OUT"
                            )
                        frame = plain(turn(frame), self.colour, other)
                        yield Frame(time, to_rgb(frame, self.colour, reformatter, deep), frame)
                else:
                    if found or back is None:
                        return
                    self.damaged = before

    def _decode(
        self, container: av.container.InputContainer, stream: av.VideoStream, start: Fraction = Fraction(0)
    ) -> Iterator[av.VideoFrame]:
        """All frames from here on; counts those from `start` on that cannot be decoded, all of them if it is 0."""
        for number, packet in enumerate(to_decode(container, stream)):
            if number in self.untold:
                packet.pts = None
            try:
                yield from packet.decode()
            except av.error.MemoryError:
                raise
            except av.FFmpegError:  # each decoder has its own for a damaged frame
                self.damaged += not start or packet.pts is None or packet.pts * self.step - self.origin >= start

    def _timed(
        self, container: av.container.InputContainer, stream: av.VideoStream, start: Fraction = Fraction(0)
    ) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Frames as of `_decode`, and their times."""
        due, doubt, near = Fraction(0), Fraction(0), 1 / (4 * self.coded_rate)  # half a field
        for frame in self._decode(container, stream, start):
            moment = frame.dts if self.dts_only else frame.pts
            time = due if moment is None else moment * self.step - self.delay - self.origin
            # FFmpeg takes the time of a frame for the next one's where a packet of MPEG ends within the mark of its
            # beginning. Where times do leap, they leap further, or that of a later frame has leapt as far.
            off = time - due
            if self.untold and moment is not None and abs(off) < scan.SLACK:
                if abs(off) <= near or abs(off - doubt) > near:
                    time, doubt = due, off
            due = time + (self._lasts(frame) if self.untold else 1 / self.rate)
            time = self.even.get(time, time)
            yield frame, snapped(time, self.rate, self.step) if self.regular else time

    def _lasts(self, frame: av.VideoFrame) -> Fraction:
        """How long a frame is shown, exactly where that is a number of fields of the codec's rate."""
        lasts = snapped(frame.duration * self.step, 2 * self.coded_rate, self.step)
        return lasts if self.field is None else max(lasts, 2 * self.field)  # it may be told of one field only

    def _describe(self, frame: av.VideoFrame, stream: av.VideoStream, told: Colour) -> None:
        """told: the colours as the container has them, for what the frames leave open."""
        self.origin = (frame.pts or 0) * self.step
        self.begin = min(self.begin, self.origin)  # MP4 skips what is before 0
        self.delay = (frame.dts or 0) * self.step - self.origin if self.dts_only else Fraction(0)
        self.aspect = stream.sample_aspect_ratio or Fraction(1)
        sides = upright_sides(frame)
        self.filters = TURNS.get(sides, ())
        if sides not in TURNS:
            self.notes += (f"{self.path}: is meant to be turned by {frame.rotation} degrees; frames are not turned",)
        self.width, self.height = frame.width, frame.height
        self.coded = (frame.width, frame.height, frame.format.name)
        if self.filters and not sides[0]:  # lies on its side
            self.width, self.height, self.aspect = self.height, self.width, 1 / self.aspect
        extent = FULL if frame.format.name.startswith("yuvj") else frame.color_range
        says = (frame.colorspace, extent, frame.color_primaries, frame.color_trc)
        colour = Colour(*(b if a == unknown else a for a, b, unknown in zip(says, told, Colour())))
        if is_rgb(frame):  # RGB has no matrix: its tags do not hold for the YUV that an encoder makes of it
            colour = colour._replace(matrix=Colour().matrix, range=Colour().range)
        elif colour.matrix == RGB:  # PNG says so of grey, too
            colour = colour._replace(matrix=Colour().matrix)
        self.colour = colour
        self.light = light_of(frame)
        upright = filtering(self.filters, *self.coded, self.step)(frame)  # FFmpeg lays 4:2:2 on its side as 4:4:4
        self.pix_fmt = plain_format(upright.format.name.replace("yuvj", "yuv"), self.colour)
        alpha = any(part.is_alpha for part in frame.format.components)
        hidden = stream.metadata.get("alpha_mode") == "1"  # of WebM, beside the frames: FFmpeg does not decode it
        if hidden or alpha and frame.to_ndarray(format="rgba")[..., 3].min() < 255:
            self.notes += (f"{self.path}: transparency is lost; colours are taken as they are",)

    def _scan(self) -> None:
        found = scan.scan(self.path, self.origin, self.rate, self.field)
        self.damaged += found.incomplete
        self.notes += found.notes
        if found.halved:  # a container may count fields
            self.rate = 1 / (2 * self.field)
        # Reading from the middle gets guesses wrong. A raw stream holds no times.
        self.timed = not found.guessed and len(found.times) > 1
        count, times, hold = found.count, found.times, found.hold
        if found.guessed and found.uneven:  # FFmpeg adds them up in the order of decoding
            times, hold = self._decoded_times()
            count = len(times) - 1
        self._measure(count, times, hold)

    def _decoded_times(self) -> tuple[list[Fraction], Fraction]:
        """When frames are shown, that of the first twice, and for how long the last one; all are decoded for it."""
        self.untold, self.regular, damaged = without_times(self.path), False, self.damaged
        times = [Fraction(0), Fraction(0)]
        with opened(self.path) as container:
            for frame, time in self._timed(container, video_stream(container, self.path)):
                if time > times[-1]:
                    times.append(time)
                hold = self._lasts(frame)
        self.damaged = damaged
        return times, hold

    def _measure(self, count: int, times: list[Fraction], hold: Fraction) -> None:
        """Set what follows from when frames are shown. count: frames, of which the last may have no time. times: in
        order, that of the first frame twice. hold: how long the last one is shown; 0 where the file does not say."""
        moments = [*times, times[-1] + hold]
        stored = [round(moment / self.step) for moment in (moments if hold else times)]
        moved = zip(moments, stored, evened(stored, float(FILM_STEP / self.step)))
        self.even = {moment: new * self.step for moment, old, new in moved if new != old}
        if self.even:
            self.notes += (f"{self.path}: film with 3:2 pulldown; its frames are shown evenly, as they were filmed",)
            *times, end = [self.even.get(moment, moment) for moment in moments]
            hold = end - times[-1]
        last = times[-1]
        if count > len(times) - 1:  # the last frames may have none
            last = max(last, (count - 1) / self.rate)
        apart = [b - a for a, b in zip(times[1:], times[2:])]
        steps = sorted(gap for gap in apart if gap)
        self.usual, shortest = (steps[(len(steps) - 1) // 2], steps[0]) if steps else (None, 1 / self.rate)
        self.longest = max(apart, default=None)
        if len(self.even) > count / 4:  # most of it is: every second frame of film has another time
            self.rate *= Fraction(4, max(1, round(4 * self.rate * self.usual)))
        if self.longest and self.longest > LEAP_AHEAD:
            before = times[1 + apart.index(self.longest)]
            raise ValueError(
                f"{self.path}: times leap ahead by {float(self.longest):.0f} s, from {float(before):.1f} s on, as in "
                "damaged recordings; correct them with ffmpeg -i IN -c copy OUT"
            )
        # Of frames as close as this two could be taken for the same multiple of the rate.
        self.regular = shortest > 2 * self.step
        self.count, self.last = count, snapped(last, self.rate, self.step) if self.regular else last
        end = snapped(last + (hold or 1 / self.rate), self.rate, self.step)
        self.hold = max(end - self.last, min(shortest, 1 / self.rate))
        longest = self.longest or 1 / self.rate
        self.steady = max(longest, self.hold) - shortest <= 2 * self.step


class Pipe(Source):
    """y4m on standard input: read once, from the beginning."""

    path = "standard input"

    def __init__(self):
        self.bytes = Counted(sys.stdin.buffer)
        try:
            self.container = av.open(self.bytes, format=scan.Y4M)
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: not y4m; ffmpeg -i IN -f yuv4mpegpipe - makes it from any video") from error
        self.stream = self.container.streams.video[0]
        self.rate = self.stream.guessed_rate or Fraction(25)
        self.step = self.hold = 1 / self.rate
        self.width, self.height = self.stream.width, self.stream.height
        self.aspect = self.stream.sample_aspect_ratio or Fraction(1)
        self.colour = Colour(range=FULL if "yuvj" in self.stream.pix_fmt else self.stream.codec_context.color_range)
        self.pix_fmt = plain_format(self.stream.pix_fmt.replace("yuvj", "yuv"), self.colour)
        if re.search(rb" I[tbm]", self.bytes.header):
            self.notes += (fields.INTERLACED.format(self.path),)

    def frames(self, start: Fraction = Fraction(0), deep: bool = False) -> Iterator[Frame]:
        reformatter, other = VideoReformatter(), VideoReformatter()
        with reading(self.path):
            for i, frame in enumerate(self._decode()):
                if i / self.rate >= start:
                    frame = plain(frame, self.colour, other)
                    yield Frame(i / self.rate, to_rgb(frame, self.colour, reformatter, deep), frame)

    def _decode(self) -> Iterator[av.VideoFrame]:
        whole = 0
        for packet in self.container.demux(self.stream):
            whole = max(whole, (packet.pos or 0) + packet.size)
            yield from packet.decode()
        self.damaged += 0 < whole < self.bytes.count


class Counted:
    """A file to read once that counts the bytes read and keeps its first line. FFmpeg asks for nothing but `read`."""

    def __init__(self, file: BinaryIO):
        self.file, self.count, self.header = file, 0, b""

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.header = self.header or data.partition(b"\n")[0]
        self.count += len(data)
        return data


def _stream_notes(path: str, container: av.container.InputContainer, taken: av.VideoStream) -> tuple[str, ...]:
    others = [each for each in container.streams if each.index != taken.index and each.type in ("video", "data")]
    # FFmpeg's mark for MP4's stream of chapters, which are copied.
    others = [each for each in others if int(each.discard) != DISCARD_ALL]
    if not others:
        return ()
    what = ", ".join(f"{'cover' if is_cover(each) else each.type} (stream {each.index})" for each in others)
    return (f"{path}: {what} left out; only one video is taken, with the sound and the subtitles",)


def _check_count(source: Source) -> None:
    if source.count < 2:
        raise ValueError(f"{source.path}: {source.count} frame; at least two are needed")
