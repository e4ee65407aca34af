"""What interpolate_video.py writes: exact times, unchanged pictures and colours, the input's sound."""

from fractions import Fraction
from math import ceil

import av
import numpy as np
import pytest
from video_files import HEIGHT, NTSC, WIDTH, decode, encode, moving, packets, planes, run

from utils import io, video, video_out
from utils.timeline import Grid

# Times


@pytest.mark.parametrize("rate", [24, 25, NTSC])
@pytest.mark.parametrize("option", ["--factor 2", "--factor 3", "--factor 8", "--fps 60", "--fps 50", "--slow 2"])
def test_every_time_is_exact(tmp_path, rate, option):
    frames, (name, value) = 13, option.split()
    source = encode(tmp_path / "in.mp4", moving(frames), rate)
    run(source, tmp_path / "out.mp4", name, value)
    times, _ = decode(tmp_path / "out.mp4")
    value, length = Fraction(value), frames / Fraction(rate)
    if name == "--factor":
        expected = [k / (rate * value) for k in range((frames - 1) * int(value) + 1)]
    elif name == "--slow":
        expected = [k / Fraction(rate) for k in range((frames - 1) * int(value) + 1)]
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


@pytest.mark.parametrize("option", ["--factor 3", "--slow 2", "--fps 60", "--factor 2 --codec ffv1"])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm", "out.gif"])
def test_the_output_lasts_as_long_as_the_input(tmp_path, name, option):
    if name in ("out.gif", "out.webm") and "codec" in option:
        pytest.skip("has one codec")
    moments = [Fraction(k, 25) for k in (0, 1, 2, 4, 5)]
    source = encode(tmp_path / "in.mp4", moving(5), 25, moments, bf="0", crf="5")
    run(source, tmp_path / name, *option.split())
    slow = 2 if "slow" in option else 1
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
    run(encode(tmp_path / "in.nut", moving(8), 24, late), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(1, 3) + Fraction(i, 48) for i in range(15)]


@pytest.mark.parametrize("kind", [".mp4", ".mkv"])
def test_a_recording_whose_times_begin_anywhere_begins_at_once(tmp_path, kind):
    """Those of broadcasts begin anywhere up to 26 hours."""
    plain, late = encode(tmp_path / "in.ts", moving(25), sound="aac"), tmp_path / "late.ts"
    with av.open(str(plain)) as given, av.open(str(late), "w", options={"output_ts_offset": "40000"}) as output:
        streams = {stream.index: output.add_stream_from_template(stream, opaque=True) for stream in given.streams}
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    with av.open(str(late)) as container:
        assert container.start_time > 40000 * av.time_base
    for source in (plain, late):
        run(source, tmp_path / f"{source.stem}{kind}")
    for stream in ("video", "audio"):
        first, second = (packets(tmp_path / f"{stem}{kind}", stream) for stem in ("in", "late"))
        assert [data for _, data in first] == [data for _, data in second]
        assert all(abs(a - b) <= Fraction(1, 500) and a < 2 for (a, _), (b, _) in zip(first, second))


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


def test_reading_from_the_middle_of_a_file_in_which_nobody_can_seek_gives_the_frames_from_there(tmp_path):
    path = encode(tmp_path / "in.swf", moving(60), codec="flv", b="2M")
    with av.open(str(path)) as container, pytest.raises(av.FFmpegError):
        container.seek(1000, stream=container.streams.video[0])
    source = video.open_source(str(path))
    whole, found = list(source.frames()), list(source.frames(Fraction(3, 2)))
    assert len(whole) == 60 and source.damaged == 0
    later = [frame for frame in whole if frame.time >= Fraction(3, 2)]
    assert all(a.time == b.time and (a.image == b.image).all() for a, b in zip(later, found, strict=True))


# Pictures


@pytest.mark.parametrize("codec", [("--codec", "ffv1"), ("--codec", "h264", "--crf", "0")])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
def test_frames_of_the_input_come_back_unchanged(tmp_path, codec, pix_fmt):
    colour = (6, 2) if pix_fmt == "yuvj420p" else (6, 1)
    source = encode(tmp_path / "in.mp4", moving(10), pix_fmt=pix_fmt, colour=colour)
    run(source, tmp_path / "out.mp4", "--factor", "2", *codec)
    before, after = planes(source), planes(tmp_path / "out.mp4")
    assert len(after) == 19
    for a, b in zip(before, after[::2]):
        assert (a == b).all()


def test_pictures_come_back_unchanged_from_the_lossless_codec(tmp_path):
    frames = moving(5)
    for i, frame in enumerate(frames):
        io.write_image(tmp_path / "frames" / f"{i}.png", frame)
    run(tmp_path / "frames", tmp_path / "out.mkv", "--codec", "ffv1", "--input_fps", "10")
    times, images = decode(tmp_path / "out.mkv")
    assert times == [Fraction(k, 20) for k in range(9)]
    assert all((a == b).all() for a, b in zip(frames, images[::2]))
    halves = [(a.astype(float) + b) / 2 for a, b in zip(frames, frames[1:])]
    assert all(np.abs(a - b).max() <= 0.51 for a, b in zip(halves, images[1::2]))


RED_GREEN_BLUE = {1: (0.2126, 0.7152, 0.0722), 6: (0.299, 0.587, 0.114)}  # luma of BT.709 and BT.601


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("extent", [1, 2])
@pytest.mark.parametrize("bits", [8, 10])
def test_colours_are_those_of_the_standard_to_one_grey_level(tmp_path, matrix, extent, bits):
    """Flat frames of Y, Cb, Cr values, read, blended by the average, written, and decoded to Y, Cb, Cr again."""
    rng = np.random.default_rng(matrix)
    kr, kg, kb = RED_GREEN_BLUE[matrix]
    most, centre = 2**bits - 1, 2 ** (bits - 1)
    top, chroma, black = np.array((219, 224, 16)) * 2 ** (bits - 8) if extent == 1 else (most, most, 0)
    pix_fmt, kind = ("yuv420p", np.uint8) if bits == 8 else ("yuv420p10le", np.uint16)
    colours = rng.uniform(0.05, 0.95, (6, 3))
    luma = colours @ (kr, kg, kb)
    cb, cr = (colours[:, 2] - luma) / (2 * (1 - kb)), (colours[:, 0] - luma) / (2 * (1 - kr))
    levels = np.round(np.stack([luma * top + black, cb * chroma + centre, cr * chroma + centre], 1)).clip(0, most)
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, extent
        stream.codec_context.color_primaries = stream.codec_context.color_trc = matrix
        for i, (y, u, v) in enumerate(levels):
            frame = av.VideoFrame(WIDTH, HEIGHT, pix_fmt)
            for plane, value in zip(frame.planes, (y, u, v)):
                plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind))
            frame.pts, frame.colorspace, frame.color_range = i, matrix, extent
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    read = [frame.image for frame in video.open_source(str(source)).frames(deep=bits > 8)]
    exact = (levels - (black, centre, centre)) / (top, chroma, chroma)
    red = exact[:, 0] + 2 * (1 - kr) * exact[:, 2]
    blue = exact[:, 0] + 2 * (1 - kb) * exact[:, 1]
    rgb = np.stack([red, (exact[:, 0] - kr * red - kb * blue) / kg, blue], 1).clip(0, 1) * 255
    assert all(np.abs(image / (np.iinfo(kind).max / 255) - colour).max() <= 1 for image, colour in zip(read, rgb))
    run(source, tmp_path / "out.mp4", "--codec", "ffv1", "--cuts", "no")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
    assert tags == (matrix, extent, matrix, matrix)
    got = np.array([[np.frombuffer(plane, kind)[0] for plane in frame.planes] for frame in frames])
    assert (got[::2] == levels).all()
    # Half a level of rounding on either way; in finer levels FFmpeg's conversions are off by another half.
    assert np.abs(got[1::2] - (levels[:-1] + levels[1:]) / 2).max() <= (1.5 if bits == 8 else 2)


@pytest.mark.parametrize("extent", [0, 1, 2])
@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le"])
@pytest.mark.parametrize("name", ["out.mkv", "again.mkv"])
def test_grey_keeps_its_levels(tmp_path, pix_fmt, extent, name):
    """Without a tag it is of the full range, as for FFmpeg. Black and white of HEVC and AV1 are of the limited one."""
    deep = pix_fmt == "gray10le"
    values = np.linspace(16, 235, WIDTH).round().astype(np.uint16)[None].repeat(HEIGHT, 0)
    with av.open(str(tmp_path / "in.mkv"), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        stream.codec_context.color_range = extent
        levels = values << 2 if deep else values.astype(np.uint8)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(levels, format=pix_fmt)
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    source = tmp_path / "in.mkv"
    exact = (values - 16.0) * 255 / 219 if extent == 1 else values * (1020 / 1023 if deep else 1.0)
    for out in ("out.mkv", "again.mkv")[: 1 + (name == "again.mkv")]:
        for unit, asked in ((1, False), (257, True)):
            read = [frame.image for frame in video.open_source(str(source)).frames(deep=asked)]
            # FFmpeg's conversion makes new frames of 10 bits and the full range up to 3 of 1023 levels brighter.
            most = 1.75 if deep and out == "again.mkv" else 1
            assert all(np.abs(image / unit - exact[..., None]).max() <= most for image in read)
        run(source, tmp_path / out, "--codec", "ffv1")
        source = tmp_path / out
    with av.open(str(source)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == (5 if name == "out.mkv" else 9)
    for frame in frames:
        luma = np.frombuffer(frame.planes[0], levels.dtype).reshape(HEIGHT, -1)[:, :WIDTH]
        assert frame.color_range == (1 if extent == 1 else 2)
        assert np.abs(luma.astype(int) - levels).max() <= (4 if deep else 1 if extent == 1 else 0)


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV writes no rotation")
@pytest.mark.parametrize("turned", [90, -90, 180])
def test_a_turned_video_comes_out_upright_and_unchanged(tmp_path, turned):
    frames = moving(4)
    source = encode(tmp_path / "in.mp4", frames, turned=turned, aspect=Fraction(4, 3))
    run(source, tmp_path / "out.mp4", "--codec", "ffv1", "--factor", "1")
    _, images = decode(tmp_path / "out.mp4")
    _, lying = decode(source)
    assert all(np.abs(np.rot90(a, turned // 90).astype(int) - b).max() <= 12 for a, b in zip(lying, images))
    assert all(np.abs(np.rot90(a, turned // 90).astype(int) - b).mean() <= 0.5 for a, b in zip(lying, images))
    with av.open(str(tmp_path / "out.mp4")) as container:
        expected = Fraction(4, 3) if turned == 180 else Fraction(3, 4)
        assert container.streams.video[0].sample_aspect_ratio == expected
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize(
    "matrix, upright",
    [
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
        ((1, 0, 0, -1), lambda x: x[::-1]),
        ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
        ((0, -1, 1, 0), lambda x: np.rot90(x)),
    ],
)
def test_a_mirrored_video_comes_out_as_players_show_it(tmp_path, matrix, upright):
    source = encode(tmp_path / "in.mp4", moving(4))
    (a, b, c, d), data = matrix, bytearray(source.read_bytes())
    across, down = 2**17, 2**15  # the aspect of pixels is stored elsewhere, too
    box = np.array([a * across, b * across, 0, c * down, d * down, 0, 0, 0, 2**30], ">i4").tobytes()
    at = data.index(b"tkhd") + 44  # where the track's header has its matrix
    data[at : at + 36] = box
    source.write_bytes(data)
    run(source, tmp_path / "out.mp4", "--codec", "ffv1", "--factor", "1")
    lying, got = decode(source)[1], decode(tmp_path / "out.mp4")[1]
    assert all(np.abs(upright(a).astype(int) - b).mean() <= 0.5 for a, b in zip(lying, got)) and len(got) == 4


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV writes no rotation")
@pytest.mark.parametrize("turned", [0, 90, -90, 180])
def test_frames_with_data_of_a_kind_that_pyav_does_not_know_are_read_and_turned(tmp_path, turned):
    """FFmpeg hands on the EXIF data of TIFF frames, as of those of cameras that record JPEG."""
    frames = moving(3)
    source = encode(tmp_path / "in.mov", frames, codec="tiff", pix_fmt="rgb24", turned=turned)
    read = list(video.open_source(str(source)).frames())
    assert all((a.image == np.rot90(b, turned // 90)).all() for a, b in zip(read, frames, strict=True))


def test_a_video_to_be_shown_askew_is_told(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(4))
    data = bytearray(source.read_bytes())
    at, half = data.index(b"tkhd") + 44, round(2**16 / 2**0.5)
    data[at : at + 36] = np.array([half, half, 0, -half, half, 0, 0, 0, 2**30], ">i4").tobytes()
    source.write_bytes(data)
    assert any("is meant to be turned" in note for note in video.open_source(str(source)).notes)


@pytest.mark.parametrize("name, codec", [("out.mkv", "ffv1"), ("out.mkv", "h264"), ("out.mp4", "h264")])
def test_the_tags_of_colours_are_kept_where_only_some_are_there(tmp_path, name, codec):
    source = encode(tmp_path / "in.mp4", moving(4), colour=(1, 2), pix_fmt="yuv420p")
    run(source, tmp_path / name, "--codec", codec)
    tags = []
    for path in (source, tmp_path / name):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            tags.append((frame.colorspace, frame.color_range))
    assert tags == [(1, 2), (1, 2)]


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("name, made_by, pix_fmt", [("in.mov", "png", "rgb24"), ("in.mp4", "libx264rgb", "rgb24")])
def test_rgb_becomes_yuv_that_does_not_say_it_is_rgb(tmp_path, name, made_by, pix_fmt, codec):
    """Screen recordings and pictures in a container: decoders give them the matrix of RGB, which VP9 and AV1 refuse
    for 4:2:0 and H.264 does not allow there."""
    source = encode(tmp_path / name, moving(4), codec=made_by, pix_fmt=pix_fmt)
    run(source, tmp_path / "out.mkv", "--codec", codec)
    with av.open(str(tmp_path / "out.mkv")) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuv420p" and frame.colorspace == video.UNKNOWN and frame.color_range != video.FULL


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.mov"])
def test_the_shape_of_pixels_survives(tmp_path, name):
    run(encode(tmp_path / "in.mp4", moving(4), aspect=Fraction(16, 11)), tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


@pytest.mark.parametrize("codec", sorted(video_out.CODECS))
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_the_shape_of_pixels_survives_or_is_told_to_be_lost(tmp_path, capfd, name, codec):
    source = encode(tmp_path / "in.mp4", moving(4), aspect=Fraction(16, 11))
    run(source, tmp_path / name, "--codec", codec)
    with av.open(str(tmp_path / name)) as container:
        kept = container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
    assert kept != ("the pixel aspect ratio 16/11 is not stored" in capfd.readouterr().err)


@pytest.mark.parametrize(
    "keep, lossless, raw",
    [
        ("yuv420p10le", "yuv420p10le", "yuv420p"),
        ("yuva422p", "yuv422p", "yuv422p"),
        ("yuvj444p", "yuv444p", "yuv444p"),
        ("gray16be", "gray10le", "gray"),
        ("gbrp12le", "gbrp10le", "yuv420p"),
        ("rgb24", "bgr0", "yuv420p"),
        ("pal8", "bgr0", "yuv420p"),
    ],
)
def test_chroma_is_kept_where_nothing_is_lost_and_only_there(keep, lossless, raw):
    made = [video_out.Format(64, 48, 25, Fraction(1, 25), codec=codec, keep=keep) for codec in ("ffv1", "y4m", "h264")]
    assert [form.pix_fmt for form in made] == [lossless, raw, "yuv420p"]
    assert [form.even for form in made] == [False, False, True]


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (33, 65), (16, 16)])
def test_odd_sizes_lose_no_row_and_no_column(tmp_path, size, capsys):
    height, width = size
    frames = [
        np.ascontiguousarray(frame[:height, :width])
        for frame in (np.pad(f, ((0, 0), (0, 9), (0, 0))) for f in moving(3))
    ]
    for i, frame in enumerate(frames):
        io.write_image(tmp_path / "frames" / f"{i}.png", frame)
    run(tmp_path / "frames", tmp_path / "out.mp4", "--crf", "5")
    _, images = decode(tmp_path / "out.mp4")
    assert images[0].shape == (height + height % 2, width + width % 2, 3)
    told = capsys.readouterr().err
    assert ("is odd" in told) == bool(height % 2 or width % 2)
    assert f"out.mp4: {width + width % 2}x{height + height % 2}, " in told
    run(tmp_path / "frames", tmp_path / "out")
    assert f"out: {width}x{height}, " in capsys.readouterr().err
    assert all((io.read_image(tmp_path / "out" / f"{2 * i + 1:08d}.png") == frames[i]).all() for i in range(3))


@pytest.mark.parametrize("alpha", [255, 100])
def test_lost_transparency_is_told(tmp_path, alpha):
    image = np.full((16, 32, 4), (9, 9, 9, alpha), np.uint8)
    with av.open(str(tmp_path / "in.mkv"), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgra"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(image, format="bgra")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    notes = video.open_source(str(tmp_path / "in.mkv"), Fraction(25)).notes
    assert any("transparency is lost" in note for note in notes) == (alpha < 255)


def test_lost_transparency_of_webm_is_told_though_no_frame_shows_it(tmp_path):
    for name, pix_fmt, told in (("in.webm", "yuva420p", True), ("plain.webm", "yuv420p", False)):
        source = video.open_source(str(encode(tmp_path / name, moving(3), codec="libvpx-vp9", pix_fmt=pix_fmt)))
        assert any("transparency is lost" in note for note in source.notes) == told


# Sound


def test_sound_is_copied_packet_by_packet(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(60), sound="aac")
    run(source, tmp_path / "out.mp4", "--segment", "1")
    assert packets(tmp_path / "out.mp4", "audio") == packets(source, "audio")
    assert len(packets(source, "audio")) > 90
    run(source, tmp_path / "out.mkv", "--fps", "60")
    assert [data for _, data in packets(tmp_path / "out.mkv", "audio")] == [
        data for _, data in packets(source, "audio")
    ]


@pytest.mark.parametrize(
    "first, sound, name, kept",
    [
        ("in.mkv", "libopus", "out.mov", False),
        ("in.mkv", "libopus", "out.MP4", True),
        ("in.mkv", "libopus", "out.mkv", True),
        ("in.avi", "pcm_s16le", "out.mp4", False),
        ("in.avi", "pcm_s16le", "out.mov", True),
    ],
)
def test_sound_that_a_file_cannot_hold_is_left_out_and_told(tmp_path, capsys, first, sound, name, kept):
    """Some containers refuse it only when they are begun or ended, after all frames are made."""
    source = encode(tmp_path / first, moving(10), sound=sound)
    run(source, tmp_path / name)
    assert len(decode(tmp_path / name)[0]) == 19
    assert ("cannot be stored in" in capsys.readouterr().err) == (not kept)
    with av.open(str(tmp_path / name)) as container:
        assert len(container.streams.audio) == kept


def test_names_in_capitals_are_names_all_the_same(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(4))
    for name in ("out.mp4", "OUT.MP4", "out.m4v"):
        run(source, tmp_path / name, "--codec", "h265")
        data = (tmp_path / name).read_bytes()
        assert b"hvc1" in data and data.index(b"moov") < data.index(b"mdat")


def test_slow_motion_is_silent_and_says_so(tmp_path, capsys):
    run(encode(tmp_path / "in.mp4", moving(10), sound="aac"), tmp_path / "out.mp4", "--slow", "2")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert "--slow 2" in capsys.readouterr().err


def test_subtitles_are_copied_where_they_can_be_stored(tmp_path, capsys):
    plain = encode(tmp_path / "plain.mp4", moving(50))
    source = tmp_path / "in.mkv"
    with av.open(str(plain)) as first, av.open(str(source), "w") as output:
        picture = output.add_stream_from_template(first.streams.video[0], opaque=True)
        text = output.add_mux_stream("subrip", time_base=Fraction(1, 1000))
        for packet in first.demux(video=0):
            if packet.size:
                packet.stream = picture
                output.mux(packet)
        for moment in (0, 1000):
            packet = av.Packet(f"line at {moment}".encode())
            packet.pts = packet.dts = moment
            packet.duration, packet.time_base, packet.stream = 900, Fraction(1, 1000), text
            output.mux(packet)
    run(source, tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "subtitle") == packets(source, "subtitle") != []
    run(source, tmp_path / "out.mp4")
    assert "cannot be stored in .mp4 and is left out" in capsys.readouterr().err


@pytest.mark.parametrize("name, kept", [("out.mkv", True), ("out.mp4", False)])
def test_attached_fonts_go_along_and_what_does_not_is_told(tmp_path, capsys, name, kept):
    source, font = tmp_path / "in.mkv", b"what draws the subtitles"
    plain = encode(tmp_path / "plain.mkv", moving(10), sound="aac")
    with av.open(str(plain)) as first, av.open(str(source), "w") as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in first.streams]
        output.add_stream_from_template(first.streams.video[0], opaque=True)
        output.add_attachment("font.ttf", "font/ttf", font)
        for packet in first.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    run(source, tmp_path / name)
    told = capsys.readouterr().err
    assert "in.mkv: video (stream 2) left out" in told
    assert ("attachment (stream 3, font.ttf) cannot be stored in .mp4" in told) == (not kept)
    with av.open(str(tmp_path / name)) as container:
        found = [stream.data for stream in container.streams if stream.type == "attachment"]
    assert found == [font] * kept
