"""Video in: any file that FFmpeg reads (PyAV bundles it), a folder of pictures, a y4m pipe.

    source = video.open_source("in.mp4")
    for frame in source.frames(start=Fraction(10)):
        frame.time, frame.image

Frames are upright, RGB (H, W, 3), uint8, or uint16 where that is asked for; times are Fractions, in seconds from the
first frame. A fault in a file is a ValueError or FileNotFoundError that names it.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import av
from av.video.reformatter import VideoReformatter

from . import fields, io
from .colours import DEEP, FULL, RGB, SHALLOW, Colour, is_rgb, plain, plain_format, to_rgb
from .containers import (
    AVI_HEAD,
    MOV,
    TURNS,
    begins,
    filtering,
    in_fragments,
    is_cover,
    opened,
    packets,
    reading,
    stated_size,
    tells_decoding,
    tells_length,
    to_decode,
    upright_sides,
    video_stream,
)
from .hdr import Light, light_of
from .timeline import Frame, snapped

PIPE = "-"
DISCARD_ALL = 48  # FFmpeg's number for a stream that nobody should read
SLACK, NOTED = Fraction(1, 2), Fraction(1, 10)  # seconds that a file may lack; from which a note says so
LEAP_BACK, LEAP_AHEAD = 1, 6 * 3600  # seconds; no container can hold a frame of seven hours in every unit of time
COPIED = ("audio", "subtitle")  # streams that are copied to the output
PLAYED = ("audio", "video")
LOOKED_AT = 8  # frames by which it is told what the others are like
# Containers with one duration for all streams, from 0, not from the first frame.
FROM_ZERO = ("matroska,webm", "nut", "asf", "wtv")
FROM_DECODING = ("flv",)  # containers whose duration counts from where the first frame is decoded, before it is shown
GUESSED = ("mpeg",)  # containers where only some frames have times: reading from the middle gets the others wrong
OTHER_PICTURES = (".bmp", ".webp", ".tif", ".tiff", ".exr", ".heic", ".avif", ".gif")  # which utils.io does not read
Y4M = "yuv4mpegpipe"  # FFmpeg's name; it skips an incomplete last frame


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
    """A file. Its packets are read once, without decoding, to learn when frames are shown and whether it is whole."""

    def __init__(self, path: str):
        self.path, self.paths = path, [Path(path)]
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
                for frame in self._decode(container, stream, start):
                    time = self._time(frame, latest)
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
        for packet in to_decode(container, stream):
            try:
                yield from packet.decode()
            except av.error.MemoryError:
                raise
            except av.FFmpegError:  # each decoder has its own for a damaged frame
                self.damaged += not start or packet.pts is None or packet.pts * self.step - self.origin >= start

    def _time(self, frame: av.VideoFrame, latest: Fraction | None) -> Fraction:
        moment = frame.dts if self.dts_only else frame.pts
        if moment is None:
            return Fraction(0) if latest is None else latest + 1 / self.rate
        time = moment * self.step - self.delay - self.origin
        return snapped(time, self.rate, self.step) if self.regular else time

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
        count, stored, times, end, read, decoded = 0, Counter(), [self.origin], Fraction(0), 0, {}
        latest, hold, begun, until = self.origin, Fraction(0), self.origin, self.origin
        with opened(self.path) as container:
            video, duration, kind = video_stream(container, self.path), container.duration, container.format.name
            for packet in packets(container):
                shown = packet.stream.index == video.index and not packet.is_discard
                seen = shown and packet.size > 0
                count += seen
                stored[packet.stream.index] += packet.dts is not None
                heard = packet.stream.type == "audio" and not packet.is_discard  # a second edit of MOV leads back
                if packet.dts is not None and (seen or heard):
                    self._check_order(packet, decoded)
                if packet.pts is None:
                    continue
                read = (packet.pos or 0) + packet.size
                time = packet.pts * packet.time_base
                begun = min(begun, time if packet.dts is None else packet.dts * packet.time_base)
                lasts = packet.duration * packet.time_base if packet.duration else shown / self.rate
                end = max(end, time + lasts)
                if seen:
                    times.append(time)
                    latest, hold = max((latest, hold), (time, (packet.duration or 0) * packet.time_base))
                elif shown:  # the frame before stays
                    until = time + lasts
            start, size = Fraction(container.start_time or 0, av.time_base), container.size
            parts, stated = in_fragments(container, video), stated_size(self.path, kind)
            # Of other containers the duration is a guess, that of all streams, or the largest number of a recording
            # that was not finished. Frames at the end of AVI may be stored as empty, for the one before to stay.
            told = kind == MOV and not parts or kind == "avi" and AVI_HEAD < stated <= size
            if told and video.duration and video.start_time is not None:
                until = (video.start_time + video.duration) * video.time_base
            hold = until - latest if until > latest else hold  # packets come in the order of decoding
            self.damaged += kind == Y4M and read < container.size
            # As MP4 tells. Its chapters may end later than all else, and FFmpeg skips a frame that is shown in part.
            played = [each for each in container.streams if each.type in PLAYED and not is_cover(each)]
            whole = all(0 < each.frames == stored[each.index] for each in played)
        length = Fraction(duration or 0, av.time_base)
        # Times of fragments count from the stream's beginning, or from the end of a wait that their head tells.
        from_zero = kind in FROM_ZERO or parts and length >= start
        promised = length + (0 if from_zero else begun if kind in FROM_DECODING else start)
        if stated > size:  # FFmpeg guesses the duration of what is left, and often too short
            promised = max(promised, start + (end - start) * Fraction(stated, size))
        elif stated or whole or not tells_length(self.path, kind):
            promised = end
        self._check_end(start, end, promised)
        self.timed = kind not in GUESSED and len(times) > 1  # a raw stream holds none
        self._measure(count, sorted(times), hold)

    def _check_end(self, start: Fraction, end: Fraction, promised: Fraction) -> None:
        """Note, or ValueError, where the file ends before the time that it promises. start, end: of what is there."""
        missing = promised - end
        if missing > max(NOTED, 2 / self.rate):
            self.notes += (f"{self.path}: ends {float(missing):.2f} s before it says; it may be cut short",)
        if missing > SLACK:
            raise ValueError(
                f"{self.path}: cut short: {float(end - start):.1f} of {float(promised - start):.1f} s are there; "
                "copy it again, or rewrite what there is with ffmpeg -i IN -c copy OUT"
            )

    def _measure(self, count: int, times: list[Fraction], hold: Fraction) -> None:
        """Set what follows from when frames are shown. count: frames, of which the last may have no time. times: in
        order, that of the first frame twice. hold: how long the last one is shown; 0 where the file does not say."""
        last = times[-1] - self.origin
        if count > len(times) - 1:  # the last frames may have none
            last = max(last, (count - 1) / self.rate)
        apart = [b - a for a, b in zip(times[1:], times[2:])]
        steps = sorted(gap for gap in apart if gap)
        self.usual, shortest = (steps[(len(steps) - 1) // 2], steps[0]) if steps else (None, 1 / self.rate)
        self.longest = max(apart, default=None)
        if self.longest and self.longest > LEAP_AHEAD:
            before = times[1 + apart.index(self.longest)] - self.origin
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

    def _check_order(self, packet: av.Packet, decoded: dict[int, Fraction]) -> None:
        """decoded: for each stream, the time at which its previous packet is decoded."""
        time = packet.dts * packet.time_base
        before = decoded.get(packet.stream.index, time)
        if time < before - LEAP_BACK:
            raise ValueError(
                f"{self.path}: times go back, from {float(before):.1f} to {float(time):.1f} s, as in recordings that "
                "were joined; correct them with ffmpeg -i IN -c copy OUT"
            )
        decoded[packet.stream.index] = time


class Pipe(Source):
    """y4m on standard input: read once, from the beginning."""

    path = "standard input"

    def __init__(self):
        self.bytes = Counted(sys.stdin.buffer)
        try:
            self.container = av.open(self.bytes, format=Y4M)
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
