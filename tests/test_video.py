"""The times of what interpolate_video.py writes, and reads: exact, from wherever it begins."""

from fractions import Fraction
from itertools import pairwise
from math import ceil
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from video_files import NTSC, decode, encode, moving, packets, pictures, retold, run

from datasets import clips
from utils import timeline, video, video_out
from utils.timeline import Grid


@pytest.mark.parametrize("rate", [24, 25, NTSC])
@pytest.mark.parametrize(
    "option", ["--factor 2", "--factor 3", "--factor 8", "--fps 60", "--fps 50", "--slow 2", "--slow 2.5"]
)
def test_every_time_is_exact(tmp_path, rate, option):
    frames, (name, value) = 13, option.split()
    source = encode(tmp_path / "in.mp4", moving(frames), rate)
    run(source, tmp_path / "out.mp4", name, value)
    times, _ = decode(tmp_path / "out.mp4")
    value, length = Fraction(value), frames / Fraction(rate)
    if name == "--factor":
        expected = [k / (rate * value) for k in range((frames - 1) * int(value) + 1)]
    elif name == "--slow":
        factor = ceil(value)
        expected = [k * value / (rate * factor) for k in range((frames - 1) * factor + 1)]
    else:
        expected = [k / value for k in range(1000) if k / value < length]
    assert times == expected


def shown_until(path):
    """When the last frame of a file is no longer shown, in seconds from the first."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.duration:
            return stream.duration * stream.time_base
        packets = [p for p in container.demux(stream) if p.size]
        if not any(p.duration for p in packets):  # Matroska by PyAV 17: the file as a whole tells
            return Fraction(container.duration, av.time_base)
        return max((p.pts + p.duration) * p.time_base for p in packets)


@pytest.mark.parametrize("option", ["--factor 3", "--slow 2", "--slow 5/4", "--fps 60", "--factor 2 --codec ffv1"])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm", "out.gif"])
def test_the_output_lasts_as_long_as_the_input(tmp_path, name, option):
    if name in ("out.gif", "out.webm") and "codec" in option:
        pytest.skip("has one codec")
    moments = [Fraction(k, 25) for k in (0, 1, 2, 4, 5)]
    source = encode(tmp_path / "in.mp4", moving(5), 25, moments, bf="0", crf="5")
    run(source, tmp_path / name, *option.split())
    slow = Fraction(option.split()[1]) if "slow" in option else 1
    tolerance = {
        "out.mp4": 0,
        "out.mkv": Fraction(2, 1000),
        "out.webm": Fraction(2, 1000),
        "out.gif": Fraction(1, 100),
    }[name]
    tolerance += Fraction(1, 60) if "fps" in option else 0
    assert abs(shown_until(tmp_path / name) - slow * Fraction(6, 25)) <= tolerance


@pytest.mark.parametrize(
    "name, option, expected",
    [
        ("davis_dogs-jump.mp4", ("--fps", "60"), Fraction(60)),
        ("carphone.mp4", ("--fps", "60"), Fraction(60)),
        ("pysot_bag.avi", ("--fps", "50"), Fraction(50)),
        ("carphone.mp4", ("--factor", "3"), 3 * NTSC),
    ],
)
def test_every_time_of_real_clips_is_exact(real_data, tmp_path, name, option, expected):
    run(real_data / "clips" / name, tmp_path / "out.mp4", *option, "--cuts", "no", model="repeat")
    with av.open(str(real_data / "clips" / name)) as container:
        stream = container.streams.video[0]
        frames, rate = sum(1 for _ in container.decode(stream)), stream.average_rate
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        times = sorted(p.pts * p.time_base for p in container.demux(stream) if p.size)
        assert stream.average_rate == expected
    count = ceil(frames / rate * expected) if option[0] == "--fps" else (frames - 1) * int(option[1]) + 1
    assert times == [times[0] + k / expected for k in range(count)]


def test_times_that_a_container_rounded_are_put_right(tmp_path):
    """Matroska counts milliseconds: 1001/24000 s becomes 42 ms, and no output time would meet an input frame."""
    rate = Fraction(24000, 1001)
    source = encode(tmp_path / "in.mkv", moving(12), rate)
    frames = list(video.open_source(str(source)).frames())
    assert [frame.time for frame in frames] == [i / rate for i in range(12)]


def test_times_stay_exact_where_parts_begin_between_milliseconds(tmp_path):
    rate = Fraction(13, 3)
    source = encode(tmp_path / "in.mp4", moving(40), rate)
    run(source, tmp_path / "out.mp4", "--segment", "1")
    assert decode(tmp_path / "out.mp4")[0] == [k / (2 * rate) for k in range(79)]


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_part_that_is_decoded_before_the_last_one_is_shown_is_joined(tmp_path, codec):
    """Of unequal frames: encoders tell when to decode the first by the time of the third, here a second later."""
    times = [Fraction(i, 25) for i in (*range(25), 25, 47, 48, 49, 50, 51)]
    source = encode(tmp_path / "in.mkv", moving(len(times)), times=times)
    run(source, tmp_path / "out.mp4", "--factor", "1", "--segment", "1", "--codec", codec)
    assert decode(tmp_path / "out.mp4")[0] == times
    with av.open(str(tmp_path / "out.mp4")) as container:
        decoded = [(packet.dts, packet.pts) for packet in container.demux(video=0) if packet.size]
    assert all(a < b for (a, _), (b, _) in pairwise(decoded)) and all(dts <= pts for dts, pts in decoded)


def test_unequal_times_are_honoured(tmp_path):
    moments = [Fraction(k, 30) for k in (0, 1, 3, 4, 8, 9)]
    source = encode(tmp_path / "in.mp4", moving(6), 30, moments)
    run(source, tmp_path / "out.mp4", "--factor", "2")
    middles = [(a + b) / 2 for a, b in zip(moments, moments[1:])]
    assert decode(tmp_path / "out.mp4")[0] == sorted(moments + middles)
    grid = Grid(rate=Fraction(60))
    assert grid.times(moments[1], moments[2]) == [Fraction(k, 60) for k in (2, 3, 4, 5)]


@pytest.mark.parametrize("gap", [15, 400])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_times_of_no_simple_rate_survive_a_long_pause(tmp_path, name, gap):
    """As phones and screen recorders write them: a unit fine enough for all of them overflows in the pause."""
    rng = np.random.default_rng(0)
    moments = np.cumsum([0, *rng.integers(2000, 4000, 30), 90000 * gap, *rng.integers(2000, 4000, 9)])
    moments = [Fraction(int(moment), 90000) for moment in moments]
    source = encode(tmp_path / "in.mp4", moving(len(moments)), NTSC, moments)
    run(source, tmp_path / name, "--cuts", "no")
    times = decode(tmp_path / name)[0]
    assert len(times) == 2 * len(moments) - 1
    step = Fraction(1, 1000) if name == "out.mkv" else Fraction(1, 90000)
    assert max(abs(a - b) for a, b in zip(times[::2], moments)) <= step


@pytest.mark.parametrize("fps", ["23.976023976", "59.94005994", "0.001"])
def test_rates_with_many_digits_are_taken(tmp_path, fps):
    source = encode(tmp_path / "in.mp4", moving(25), 5)
    run(source, tmp_path / "out.mp4", "--fps", fps)
    times = decode(tmp_path / "out.mp4")[0]
    assert len(times) == ceil(Fraction(25, 5) * Fraction(fps))
    assert max(abs(time - k / Fraction(fps)) for k, time in enumerate(times)) <= Fraction(1, 90000)


@pytest.mark.parametrize("name", ["in.avi", "in.h264", "in.mpg", "in.asf", "in.mxf"])
def test_frames_of_files_that_do_not_say_when_each_is_shown_all_come_in_order(tmp_path, name):
    """AVI stores only the order of decoding, ASF and MXF of H.264 likewise, a raw stream no times at all; B-frames are
    decoded late."""
    images = moving(60)
    source = encode(tmp_path / name, images, codec="mpeg2video" if name == "in.mpg" else "libx264", bf="3", g="12")
    whole = video.open_source(str(source))
    frames = list(whole.frames())
    assert whole.count == len(frames) == 60 and whole.damaged == 0
    assert [frame.time for frame in frames] == [Fraction(k, 25) for k in range(60)]
    assert whole.last == frames[-1].time
    for k, frame in enumerate(frames):  # the next picture is 2 pixels further
        near = [np.abs(frame.image.astype(int) - images[i]).mean() for i in range(max(k - 1, 0), min(k + 2, 60))]
        assert np.argmin(near) == min(k, 1)
    middle = list(whole.frames(Fraction(31, 25)))
    assert [frame.time for frame in middle] == [Fraction(k, 25) for k in range(31, 60)]
    assert all((a.image == b.image).all() for a, b in zip(middle, frames[31:]))


def test_a_file_that_begins_late_keeps_its_beginning(tmp_path):
    late = [Fraction(1, 2) + Fraction(i, 25) for i in range(8)]
    source = encode(tmp_path / "in.mp4", moving(8), 25, late)
    run(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(1, 2) + Fraction(i, 50) for i in range(15)]


def test_the_last_frame_is_shown_if_it_lasts_less_than_a_millisecond(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(20), 1000)
    run(source, tmp_path / "out.mp4", "--cuts", "no")
    assert decode(tmp_path / "out.mp4")[0] == [Fraction(k, 2000) for k in range(39)]


def test_a_beginning_between_milliseconds_is_exact(tmp_path):
    late = [Fraction(1, 3) + Fraction(i, 24) for i in range(8)]
    run(encode(tmp_path / "in.nut", moving(8), 24, late, sound="pcm_s16le"), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(1, 3) + Fraction(i, 48) for i in range(15)]


@pytest.mark.parametrize("kind", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    "name, codec, sound, shift, told",
    [
        ("in.ts", "libx264", "aac", 40000, 40000),
        ("in.ts", "libx264", "aac", 95440, -4),  # seconds before its times begin again, from 0
        ("in.m3u8", "libx264", "aac", 40000, 40000),
        ("in.mkv", "libx264", "aac", 40000, 40000),
        ("in.nut", "libx264", "aac", 40000, 40000),
        ("in.ogv", "libvpx", "libopus", 40000, 40000),
        ("in.asf", "mpeg4", "libmp3lame", 40000, 40000),
        ("in.wtv", "mpeg2video", "mp2", 40000, 40000),
    ],
)
def test_a_recording_whose_times_begin_anywhere_begins_at_once(tmp_path, name, codec, sound, shift, told, kind):
    """Those of broadcasts begin anywhere up to 26 hours, those of streams when they began. told: when, in seconds."""
    plain, late = encode(tmp_path / name, moving(25), codec=codec, sound=sound), tmp_path / f"late_{name}"
    chapter = {"id": 1, "start": 40000, "end": 40001, "time_base": Fraction(1), "metadata": {"title": "all"}}
    with av.open(str(plain)) as given, av.open(str(late), "w", options={"output_ts_offset": str(shift)}) as output:
        streams = {stream.index: output.add_stream_from_template(stream, opaque=True) for stream in given.streams}
        if name == "in.mkv":
            output.set_chapters([chapter | {"start": 39000, "end": 39999}, chapter | {"id": 2}])
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    with av.open(str(late)) as container:
        assert told <= container.start_time / av.time_base < told + 1
    for source in (plain, late):
        run(source, tmp_path / f"{source.stem}_out{kind}")
    for stream in ("video", "audio"):
        first, second = (packets(tmp_path / f"{stem}in_out{kind}", stream) for stem in ("", "late_"))
        assert [data for _, data in first] == [data for _, data in second]
        assert all(abs(a - b) <= Fraction(1, 500) and a < 2 for (a, _), (b, _) in zip(first, second))
    holds = [video.open_source(str(source)).hold for source in (plain, late)]
    assert abs(holds[1] - holds[0]) <= Fraction(1, 500)
    if name == "in.mkv":
        with av.open(str(tmp_path / f"late_in_out{kind}")) as container:
            (chapter,) = container.chapters()
        assert [chapter[side] * chapter["time_base"] for side in ("start", "end")] == [0, 1]


@pytest.mark.parametrize("name, form", [("in.avi", "avi"), ("in.asf", "asf"), ("in.mkv", "matroska")])
def test_the_last_frame_of_a_file_that_was_written_into_a_pipe_lasts_as_long_as_the_others(tmp_path, name, form):
    """Its head cannot know the end: that of AVI names one far behind."""
    plain = encode(tmp_path / "plain.mp4", moving(25), codec="mpeg4")
    with open(tmp_path / name, "wb") as file:
        pipe = SimpleNamespace(write=file.write)  # it cannot go back
        with av.open(pipe, "w", format=form) as output:
            for packet in pictures(plain, output):
                output.mux(packet)
    source = video.open_source(str(tmp_path / name))
    assert source.count == 25 and source.notes == () and abs(source.hold - Fraction(1, 25)) <= Fraction(1, 1000)


@pytest.mark.parametrize("flags", ["", "+dash"])  # the latter adds indices, which count from the stream's beginning
def test_the_last_fragments_of_a_stream_begin_at_once_and_are_whole(tmp_path, flags):
    plain = encode(tmp_path / "plain.mp4", moving(50), g="10", bf="2")
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof" + flags}
    with av.open(str(tmp_path / "all.mp4"), "w", options=options) as output:
        for packet in pictures(plain, output):
            output.mux(packet)
    data, boxes = (tmp_path / "all.mp4").read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        boxes.append((data[4:8], data[:size]))
        data = data[size:]
    ends = [k + 1 for k, (kind, _) in enumerate(boxes) if kind == b"mdat"]
    head = next(k + 1 for k, (kind, _) in enumerate(boxes) if kind == b"moov")
    kept = boxes[:head] + boxes[ends[1] :]  # without two of five fragments of ten frames
    (tmp_path / "in.mp4").write_bytes(b"".join(box for _, box in kept))
    source = video.open_source(str(tmp_path / "in.mp4"))
    assert source.count == 30 and source.notes == () and source.hold == Fraction(1, 25)
    run(tmp_path / "in.mp4", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [frame.pts * frame.time_base for frame in container.decode(video=0)] == [
            Fraction(k, 50) for k in range(59)
        ]


def test_the_pictures_of_fragments_do_not_wait_for_what_only_helps_to_decode_the_sound(tmp_path):
    plain = encode(tmp_path / "plain.mp4", moving(25), sound="libopus", bf="0")
    source = retold(tmp_path / "in.mp4", plain, movflags="frag_keyframe+delay_moov")
    with av.open(str(source)) as container:
        assert container.start_time < 0
    run(source, tmp_path / "out.mp4")
    assert packets(tmp_path / "out.mp4", "video")[0][0] == 0


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.ts", "in.flv", "in.avi"])
def test_reading_from_the_middle_gives_the_frames_from_there(tmp_path, name):
    """Also from after the last key frame, to which some containers cannot seek back."""
    codec = "mpeg4" if name == "in.avi" else "libx264"
    options = {"bf": "2", "q": "3"} if name == "in.avi" else {"bf": "3", "crf": "10"}
    source = video.open_source(str(encode(tmp_path / name, moving(100), codec=codec, g="30", **options)))
    whole = list(source.frames())
    assert len(whole) == 100
    for start in (Fraction(0), Fraction(1, 3), Fraction(17, 10), Fraction(19, 5), source.last):
        found = list(source.frames(start))
        for a, b in zip([frame for frame in whole if frame.time >= start], found, strict=True):
            assert a.time == b.time and (a.image == b.image).all()


def test_a_time_is_that_of_a_frame_rate_only_where_its_unit_can_tell():
    millisecond, rate = Fraction(1, 1000), Fraction(24000, 1001)
    assert timeline.snapped(42 * millisecond, rate, millisecond) == 1 / rate
    assert timeline.snapped(45 * millisecond, rate, millisecond) == 45 * millisecond
    assert timeline.snapped(3 * millisecond, Fraction(500), millisecond) == 3 * millisecond


def test_threads_of_ffmpeg_do_not_wait_for_python_to_log(tmp_path):
    path = encode(tmp_path / "in.mp4", moving(5))
    readers = (lambda: video.open_source(str(path)), lambda: clips.open_clips(tmp_path, cache=tmp_path / "cache"))
    for read in readers:
        av.logging.set_level(av.logging.ERROR)  # as torchvision 0.21 does when it is imported
        read()
        assert av.logging.get_level() is None


def test_reading_from_the_middle_of_a_file_in_which_nobody_can_seek_gives_the_frames_from_there(tmp_path):
    path = encode(tmp_path / "in.swf", moving(60), codec="flv", b="2M")
    with av.open(str(path)) as container, pytest.raises(av.FFmpegError):
        container.seek(1000, stream=container.streams.video[0])
    source = video.open_source(str(path))
    whole, found = list(source.frames()), list(source.frames(Fraction(3, 2)))
    assert len(whole) == 60 and source.damaged == 0
    later = [frame for frame in whole if frame.time >= Fraction(3, 2)]
    assert all(a.time == b.time and (a.image == b.image).all() for a, b in zip(later, found, strict=True))


@pytest.mark.parametrize("name, codec", [("out.mkv", "h264"), ("out.mp4", "h264"), ("out.mp4", "h265")])
def test_a_pause_near_the_end_makes_no_video_longer(tmp_path, name, codec):
    """H.264 and H.265 are decoded in another order than they are shown in."""
    times = [Fraction(k, 25) + 2 * (k > 12) for k in range(16)]
    run(encode(tmp_path / "in.mkv", moving(16), times=times), tmp_path / name, "--codec", codec)
    with av.open(str(tmp_path / name)) as container:
        seconds = container.duration / 1e6
    if name == "out.mp4":  # FFmpeg does not tell how long a whole movie is shown, but its tracks
        data = (tmp_path / name).read_bytes()
        place = data.index(b"mvhd") + 16
        unit, length = np.frombuffer(data[place : place + 8], ">u4").tolist()
        seconds = length / unit
    assert abs(seconds - float(times[-1] + Fraction(1, 25))) < 0.041


def test_frames_a_millisecond_apart_are_two(tmp_path):
    """Both are nearer than a millisecond, Matroska's unit, to the same multiple of the rate."""
    times = [Fraction(round(Fraction(1000 * k, 60)), 1000) for k in range(30)]
    times[21] = times[20] + Fraction(1, 1000)
    source = video.open_source(str(encode(tmp_path / "in.mkv", moving(30), 60, times, codec="ffv1")))
    assert [frame.time for frame in source.frames()] == times and source.damaged == 0


def test_h264_of_the_same_frames_is_the_same_file_every_time(tmp_path, monkeypatch):
    """x264's code for AVX-512 made others in most runs of this, more so on more threads."""
    height, width, step, count = 180, 320, 3, 60
    noise = np.random.default_rng(0).integers(0, 256, (height, width + count * step, 3), dtype=np.uint8)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)
    images = [smooth[:, step * k : step * k + width] for k in range(count)]
    images = [image for pair in pairwise(images) for image in (pair[0], cv2.addWeighted(pair[0], 0.5, pair[1], 0.5, 0))]
    h264 = video_out.CODECS["h264"]
    monkeypatch.setitem(video_out.CODECS, "h264", h264._replace(options=h264.options | {"threads": "4"}))
    form, files = video_out.Format(width, height, Fraction(50), Fraction(1, 50)), set()
    for _ in range(6):
        writer = video_out.VideoWriter(tmp_path / "out.mp4", form)
        for k, image in enumerate(images):
            writer.write(image, Fraction(k, 50))
        writer.close()
        files.add((tmp_path / "out.mp4").read_bytes())
    assert len(files) == 1
