"""Videos whose codec counts in fields, not in frames: film with 3:2 pulldown, fields that have packets of their own."""

from fractions import Fraction

import av
import numpy as np
import pytest
from video_files import NTSC, WIDTH, decode, encode, moving, planes, run

from datasets import clips
from utils import fields, video

FILM, FIELD = Fraction(24000, 1001), 1 / (2 * NTSC)
SEQUENCE, EXTENSION = b"\0\0\1\xb3", b"\0\0\1\xb5"
TOP_FIRST, REPEAT_FIRST = 0x80, 0x02
PULLDOWN = (TOP_FIRST | REPEAT_FIRST, 0, REPEAT_FIRST, TOP_FIRST)  # of four frames the first and the third last longer


def told(data, flags=0, structure=3, height=None):
    """A packet of MPEG-2 with these flags of its picture, at NTSC's rate. structure: 1 and 2, the upper and the lower
    field; 3, a frame. height: of a frame, where it is of fields."""
    data, place = bytearray(data), -1
    while (place := data.find(b"\0\0\1", place + 1)) >= 0:
        mark, begin = bytes(data[place : place + 4]), place + 4
        if mark == SEQUENCE:
            data[begin + 3] = data[begin + 3] & 0xF0 | 4
            if height:
                data[begin + 1 : begin + 3] = bytes([data[begin + 1] & 0xF0 | height >> 8, height & 0xFF])
        elif mark == EXTENSION and data[begin] >> 4 == 1:
            data[begin + 1] &= 0xF7  # not all frames are progressive
        elif mark == EXTENSION and data[begin] >> 4 == 8:
            data[begin + 2] = data[begin + 2] & 0xFC | structure
            data[begin + 3] = data[begin + 3] & ~(TOP_FIRST | REPEAT_FIRST | 0x40 * (structure < 3)) | flags
            data[begin + 4] &= 0xFF if structure == 3 else 0x7F
        elif mark == b"\0\0\1\0":  # each group begins anew
            data[begin : begin + 2] = data[begin : begin + 2] if structure == 3 else bytes([0, data[begin + 1] & 0x3F])
    return bytes(data)


def packed(path, plain, packets):
    """Packets (data, pts, dts, duration), times in fields, in a file; all else as in the file `plain`."""
    with av.open(str(plain)) as given, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0], opaque=True)
        for data, *times in packets:
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 90000)
            packet.pts, packet.dts, packet.duration = (int(time * FIELD * 90000) for time in times)
            output.mux(packet)
    return path


def grainy(count):
    """Frames of which some in MPEG's own container get a time and some do not: it has packets of 2048 bytes."""
    images = moving(count)
    grain = np.random.default_rng(0).integers(0, 256, (32, 2 * count + WIDTH, 1), np.uint8)
    for k, image in enumerate(images):
        image[:32] = grain[:, 2 * k : 2 * k + WIDTH]
    return images


def pulled_down(path, images, leap=0):
    """Film, of which a frame is shown for three fields and the next for two; and its frames as they are decoded. leap:
    fields that are missing before the 37th frame."""
    plain = encode(path.with_name("plain.mkv"), images, FILM, codec="mpeg2video", bf="2", g="12", qscale="2")
    begin = [5 * (k // 2) + 3 * (k % 2) + leap * (k >= 36) for k in range(len(images) + 1)]
    packets = []
    with av.open(str(plain)) as given:
        for packet in given.demux(video=0):
            if packet.size:
                k, at = round(packet.pts * packet.time_base * FILM), len(packets)
                data, decoded = told(bytes(packet), PULLDOWN[k % 4]), begin[at - 1] if at else -3
                packets.append((data, begin[k], decoded, begin[k + 1] - begin[k]))
    return packed(
        path, plain, [(data, *(time + 10 for time in times[:2]), times[2]) for data, *times in packets]
    ), plain


@pytest.mark.parametrize("name", ["in.mpg", "in.vob", "in.ts", "in.mkv", "in.mov"])
def test_film_with_pulldown_is_shown_evenly_and_whole(tmp_path, name):
    """As on DVDs. In MPEG's own container few frames have times, and FFmpeg's guesses of the others lead back."""
    source, plain = pulled_down(tmp_path / name, grainy(61))
    with av.open(str(source)) as container:
        lengths = [frame.duration * frame.time_base for frame in container.decode(video=0)]
    assert sum(lasts > 5 * FIELD / 2 for lasts in lengths) in range(30, 32)  # the file has it as a display shows it
    opened = video.open_source(str(source))
    assert opened.count == 61 and opened.rate == FILM and opened.steady and not opened.damaged
    assert any("film with 3:2 pulldown" in note for note in opened.notes)
    run(source, tmp_path / "out.mkv", "--codec", "ffv1")
    times, _ = decode(tmp_path / "out.mkv")
    assert len(times) == 121 and all(abs(time - k / (2 * FILM)) < Fraction(1, 500) for k, time in enumerate(times))
    assert all(np.array_equal(a, b) for a, b in zip(planes(tmp_path / "out.mkv")[::2], planes(plain), strict=True))


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv"])
def test_pictures_that_are_shown_for_three_and_two_seconds_by_turns_are_no_film(tmp_path, name):
    """A quiz, whose sound goes with them."""
    begin = [Fraction(5 * (k // 2) + 3 * (k % 2)) for k in range(40)]
    source = video.open_source(str(encode(tmp_path / name, moving(40), times=begin)))
    assert [frame.time for frame in source.frames()] == begin and source.notes == () and not source.damaged


def test_times_that_leap_in_film_with_pulldown_are_kept(tmp_path):
    """As where a recording lacks something."""
    source = video.open_source(str(pulled_down(tmp_path / "in.vob", grainy(61), leap=120)[0]))
    times = [frame.time for frame in source.frames()]
    assert len(times) == 61 and not source.damaged
    assert all(abs(b - a - 1 / FILM) < Fraction(1, 100) for a, b in zip(times[:36], times[1:36]))
    assert abs(times[40] - times[30] - 10 / FILM - 120 * FIELD) < FIELD


def test_rounded_times_of_film_with_pulldown_are_not_lost_behind_a_leap(tmp_path):
    """As of Matroska that was copied into MPEG's own container: the sound goes with them."""
    with av.open(str(pulled_down(tmp_path / "in.mkv", grainy(121), leap=20)[0])) as given:
        with av.open(str(tmp_path / "in.mpg"), "w") as output:
            stream = output.add_stream_from_template(given.streams.video[0], opaque=True)
            for packet in given.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    source = video.open_source(str(tmp_path / "in.mpg"))
    times = [frame.time for frame in source.frames()]
    assert len(times) == 121 and not source.damaged
    assert all(abs(times[k] - k / FILM - 20 * FIELD * (k >= 36)) < FIELD for k in range(121) if not 36 <= k < 48)


def test_a_part_of_film_with_pulldown_is_read_at_the_same_times(tmp_path):
    source = video.open_source(str(pulled_down(tmp_path / "in.ts", moving(61))[0]))
    whole = [frame.time for frame in source.frames()]
    for start in (whole[13], whole[30], whole[30] + Fraction(1, 100)):
        assert [frame.time for frame in source.frames(start)] == [time for time in whole if time >= start]


@pytest.mark.parametrize("name", ["in.mpg", "in.ts", "in.mkv"])
def test_film_with_pulldown_has_no_leaps_to_train_on(tmp_path, own_cache, name):
    pulled_down(tmp_path / name, grainy(61))
    (clip,) = clips.open_clips(tmp_path, only=[name])
    assert not clip.breaks.any()


def test_fields_in_packets_of_their_own_are_no_frames(tmp_path):
    """Or a recording would seem to have twice the frames, and to be made for another rate."""
    plain = encode(
        tmp_path / "plain.mkv",
        [image[::2] for image in moving(40)],
        2 * NTSC,
        codec="mpeg2video",
        g="1",
        alternate_scan="1",
    )
    with av.open(str(plain)) as given:
        found = [bytes(packet) for packet in given.demux(video=0) if packet.size]
    packets = [(told(data, 0, 1 + k % 2, 64), k, k, 1) for k, data in enumerate(found)]
    packets = [(data[data.index(b"\0\0\1\0") :] if times[0] % 2 else data, *times) for data, *times in packets]
    for name in ("in.mkv", "in.mov"):
        source = video.open_source(str(packed(tmp_path / name, plain, packets)))
        times = [frame.time for frame in source.frames()]
        assert times == [k / NTSC for k in range(20)]
        assert (source.count, source.last, source.rate) == (20, times[-1], NTSC)
        assert abs(source.hold - 1 / NTSC) < Fraction(1, 1000)


def test_the_second_field_of_a_frame_may_have_no_time():
    """As in MPEG-TS, where some frames of a recording are in one packet and others are in two."""
    field = Fraction(1, 50)
    told = [(0, 2), (2, 1), (None, 1), (4, 1), (None, 1)]
    shown = [fields.Shown(time if time is None else time * field, lasts * field) for time, lasts in told]
    assert fields.joined(shown, field) == [fields.Shown(2 * k * field, 2 * field) for k in range(3)]
    assert fields.joined(shown, None) == shown


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1]])
def test_fields_may_be_told_to_last_as_long_as_frames(order):
    """As Matroska does, of which the length of a frame is that of all packets."""
    field = Fraction(1, 50)
    shown = [fields.Shown((2 * k + half) * field, 2 * field) for k in order for half in range(2)]
    assert fields.joined(shown, field) == [fields.Shown(2 * k * field, 2 * field) for k in order]
