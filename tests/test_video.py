"""The times of what interpolate_video.py writes, and reads: exact, also from the middle on."""

from fractions import Fraction
from itertools import pairwise
from math import ceil

import av
import cv2
import numpy as np
import pytest
from video_files import NTSC, decode, encode, moving, run

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


def test_the_last_frame_is_shown_if_it_lasts_less_than_a_millisecond(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(20), 1000)
    run(source, tmp_path / "out.mp4", "--cuts", "no")
    assert decode(tmp_path / "out.mp4")[0] == [Fraction(k, 2000) for k in range(39)]


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


def test_threads_of_ffmpeg_do_not_wait_for_python_to_log(tmp_path, own_cache):
    path = encode(tmp_path / "in.mp4", moving(5))
    readers = (lambda: video.open_source(str(path)), lambda: clips.open_clips(tmp_path))
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
