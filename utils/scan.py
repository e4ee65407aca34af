"""What the packets of a video file tell, without decoding: when its frames are shown, and whether the file is whole."""

from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import av
from av.container import InputContainer

from . import fields
from .containers import (
    AVI_HEAD,
    GUESSED,
    MOV,
    in_fragments,
    is_cover,
    opened,
    packets,
    stated_size,
    tells_length,
    video_stream,
)

SLACK, NOTED = Fraction(1, 2), Fraction(1, 10)  # seconds that a file may lack; from which a note says so
LEAP_BACK = 1  # seconds
PLAYED = ("audio", "video")
# Containers with one duration for all streams, from 0, not from the first frame.
FROM_ZERO = ("matroska,webm", "nut", "asf", "wtv")
FROM_DECODING = ("flv",)  # containers whose duration counts from where the first frame is decoded, before it is shown
Y4M = "yuv4mpegpipe"  # FFmpeg's name; it skips an incomplete last frame


class Scan(NamedTuple):
    """count: frames, of which the last may have no time. times: when they are shown, from the first one, in order, that
    of the first one twice. hold: how long the last one is shown; 0 where the file does not say. halved: whether some
    packets hold a field, not a frame. guessed: whether FFmpeg guesses some times, wrongly where frames are shown
    unequally long, as `uneven` says. incomplete: whether the last frame is. notes: what a user should know."""

    count: int
    times: list[Fraction]
    hold: Fraction
    halved: bool
    guessed: bool
    uneven: bool
    incomplete: bool
    notes: tuple[str, ...]


def scan(path: str, origin: Fraction, rate: Fraction, field: Fraction | None) -> Scan:
    """Read the packets of a file. ValueError where it is cut short, or its times go back.

    origin: time of the first frame. rate: frames a second, nominal. field: see fields.joined.
    """
    stored, end, read, decoded, begun, until = Counter(), Fraction(0), 0, {}, origin, origin
    shown = []  # in the order of decoding
    with opened(path) as container:
        video, kind = video_stream(container, path), container.format.name
        for packet in packets(container):
            pictured = packet.stream.index == video.index and not packet.is_discard
            seen = pictured and packet.size > 0
            time = None if packet.pts is None else packet.pts * packet.time_base
            lasts = (packet.duration or 0) * packet.time_base
            if seen:
                shown.append(fields.Shown(time, lasts))
            stored[packet.stream.index] += packet.dts is not None
            heard = packet.stream.type == "audio" and not packet.is_discard  # a second edit of MOV leads back
            if packet.dts is not None and (seen or heard):
                _check_order(path, packet, decoded)
            if time is None:
                continue
            read = (packet.pos or 0) + packet.size
            begun = min(begun, time if packet.dts is None else packet.dts * packet.time_base)
            lasts = lasts or pictured / rate
            end = max(end, time + lasts)
            if pictured and not seen:  # the frame before stays
                until = time + lasts
        frames = fields.joined(shown, field)
        known = [frame for frame in frames if frame.time is not None]
        latest, hold = max([(origin, Fraction(0)), *known])
        stated, size = stated_size(path, kind), container.size
        # Of other containers the duration is a guess, that of all streams, or the largest number of a recording that
        # was not finished. Frames at the end of AVI may be stored as empty, for the one before to stay.
        told = kind == MOV and not in_fragments(container, video) or kind == "avi" and AVI_HEAD < stated <= size
        if told and video.duration and video.start_time is not None:
            until = (video.start_time + video.duration) * video.time_base
        hold = until - latest if until > latest else hold  # packets come in the order of decoding
        # As MP4 tells. Its chapters may end later than all else, and FFmpeg skips a frame that is shown in part.
        played = [each for each in container.streams if each.type in PLAYED and not is_cover(each)]
        whole = all(0 < each.frames == stored[each.index] for each in played)
        start, promised = Fraction(container.start_time or 0, av.time_base), _promised(container, video, begun)
    if stated > size:  # FFmpeg guesses the duration of what is left, and often too short
        promised = max(promised, start + (end - start) * Fraction(stated, size))
    elif stated or whole or not tells_length(path, kind):
        promised = end
    return Scan(
        count=len(frames),
        times=sorted([Fraction(0), *(time - origin for time, _ in known)]),
        hold=hold,
        halved=len(frames) < len(shown),
        guessed=kind in GUESSED,
        uneven=len({frame.lasts for frame in frames}) > 1,
        incomplete=kind == Y4M and read < size,
        notes=_missing(path, start, end, promised, rate),
    )


def _promised(container: InputContainer, video: av.VideoStream, begun: Fraction) -> Fraction:
    """When a file ends, by the duration that it says. begun: when the first packet is decoded."""
    kind, start = container.format.name, Fraction(container.start_time or 0, av.time_base)
    length = Fraction(container.duration or 0, av.time_base)
    # Times of fragments count from the stream's beginning, or from the end of a wait that their head tells.
    if kind in FROM_ZERO or in_fragments(container, video) and length >= start:
        return length
    return length + (begun if kind in FROM_DECODING else start)


def _missing(path: str, start: Fraction, end: Fraction, promised: Fraction, rate: Fraction) -> tuple[str, ...]:
    """A note, or ValueError, where a file ends before the time that it promises. start, end: of what is there."""
    missing = promised - end
    if missing > SLACK:
        raise ValueError(
            f"{path}: cut short: {float(end - start):.1f} of {float(promised - start):.1f} s are there; "
            "copy it again, or rewrite what there is with ffmpeg -i IN -c copy OUT"
        )
    if missing <= max(NOTED, 2 / rate):
        return ()
    return (f"{path}: ends {float(missing):.2f} s before it says; it may be cut short",)


def _check_order(path: str, packet: av.Packet, decoded: dict[int, Fraction]) -> None:
    """decoded: for each stream, the time at which its previous packet is decoded."""
    time = packet.dts * packet.time_base
    before = decoded.get(packet.stream.index, time)
    if time < before - LEAP_BACK:
        raise ValueError(
            f"{path}: times go back, from {float(before):.1f} to {float(time):.1f} s, as in recordings that were "
            "joined; correct them with ffmpeg -i IN -c copy OUT"
        )
    decoded[packet.stream.index] = time
