import os
import resource
import signal
import subprocess
import sys
import time
from fractions import Fraction
from io import BytesIO
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from conftest import ROOT, formula_image, formula_weights
from PIL import Image, ImageSequence

import interpolate_video
import models
from models.baselines import Average
from utils import cli, io, timeline, video
from utils.ahead import ahead
from utils.pipeline import between, infer
from utils.timeline import Frame, Grid, Step

SCRIPT = str(ROOT / "interpolate_video.py")
HEIGHT, WIDTH = 64, 128  # x264's decisions vary from run to run for frames of less than eight blocks in width
NTSC = Fraction(30000, 1001)


# What the tests are made of


def texture(seed, height=HEIGHT, width=WIDTH + 256):
    """A random texture of coarse cells, RGB uint8."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    return np.kron(cells, np.ones((8, 8, 1))).astype(np.uint8)


def moving(count, seed=0, step=2):
    """A texture that moves to the left by `step` pixels a frame."""
    wide = texture(seed, width=(WIDTH + step * count) // 8 * 8 + 16)
    return [np.ascontiguousarray(wide[:, step * i : step * i + WIDTH]) for i in range(count)]


def encode(path, images, rate=25, times=None, codec="libx264", pix_fmt="yuv420p", sound=False, colour=None, **options):
    """A video file, made with PyAV alone. times: in seconds, or at the constant rate. colour: matrix, range."""
    rate = Fraction(rate)
    times = times or [i / rate for i in range(len(images))]
    tick = Fraction(1, 90000) if any((t * rate).denominator != 1 for t in times) else 1 / rate
    turned, aspect = options.pop("turned", 0), options.pop("aspect", Fraction(1))
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options or ({"crf": "5"} if codec == "libx264" else {}))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.time_base = pix_fmt, tick
        stream.codec_context.time_base, stream.codec_context.sample_aspect_ratio = tick, aspect
        matrix, extent = colour or (6, 1)
        if colour:
            stream.codec_context.colorspace, stream.codec_context.color_range = colour
        if turned:
            stream.set_display_rotation(turned)
        audio = output.add_stream("aac", rate=44100, layout="mono") if sound else None
        for image, moment in zip(images, times):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            space = {1: 1, 6: 5}[matrix]
            if not pix_fmt.startswith(("rgb", "bgr", "gbr")):
                frame = frame.reformat(format=pix_fmt, dst_colorspace=space, dst_color_range=extent)
            frame.pts, frame.time_base = round(moment / tick), tick
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound:
            wave = np.sin(np.arange(int(44100 * (times[-1] + 1 / rate))) * 0.06).astype(np.float32)[None] / 3
            for start in range(0, wave.shape[1], 1024):
                block = np.ascontiguousarray(wave[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 44100, start
                output.mux(audio.encode(frame))
            output.mux(audio.encode(None))
    return path


def decode(path):
    """Times in seconds from the first frame, and RGB frames, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    times = [frame.pts * frame.time_base for frame in frames]
    return [t - times[0] for t in times], [frame.to_ndarray(format="rgb24") for frame in frames]


def planes(path):
    """The decoded samples of every frame, plane after plane, no colour conversion."""

    def samples(plane, bits):
        rows = np.frombuffer(plane, np.uint16 if bits > 8 else np.uint8).reshape(plane.height, -1)
        return rows[:, : plane.width].ravel()

    with av.open(str(path)) as container:
        return [
            np.concatenate([samples(plane, frame.format.components[0].bits) for plane in frame.planes])
            for frame in container.decode(video=0)
        ]


def packets(path, kind):
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


def run(*args, model="average"):
    """The script in this process; errors are raised."""
    interpolate_video.main(interpolate_video.parser().parse_args([*map(str, args), "--model_name", model]))


def complaint(capsys, *args):
    """What a person sees who makes a mistake: exit status 2 and one line."""
    sys_argv, sys.argv = sys.argv, ["interpolate_video.py", *map(str, args), "--model_name", "average"]
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.run(interpolate_video.main, interpolate_video.parser())
    finally:
        sys.argv = sys_argv
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "frame/s" not in line and line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


def start(*args, model="average", **kwargs):
    command = [sys.executable, SCRIPT, *map(str, args), "--model_name", model]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, **kwargs)


@pytest.fixture
def clip(tmp_path):
    return encode(tmp_path / "in.mp4", moving(20))


# Times


@pytest.mark.parametrize("rate", [24, 25, NTSC])
@pytest.mark.parametrize("option", ["--factor 2", "--factor 3", "--factor 8", "--fps 60", "--fps 50", "--slow 2"])
def test_every_time_is_exact(tmp_path, rate, option):
    frames, (name, value) = 13, option.split()
    source = encode(tmp_path / "in.mp4", moving(frames), rate)
    run(source, tmp_path / "out.mp4", name, value)
    times, _ = decode(tmp_path / "out.mp4")
    value, length = Fraction(value), (frames - 1) / Fraction(rate)
    if name == "--factor":
        expected = [k / (rate * value) for k in range((frames - 1) * int(value) + 1)]
    elif name == "--slow":
        expected = [k / Fraction(rate) for k in range((frames - 1) * int(value) + 1)]
    else:
        expected = [k / value for k in range(1000) if k / value <= length]
    assert times == expected


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
    assert times == [times[0] + k / expected for k in range(int((frames - 1) / rate * expected) + 1)]


def test_times_that_a_container_rounded_are_put_right(tmp_path):
    """Matroska counts milliseconds: 1001/24000 s becomes 42 ms, and no output time would meet an input frame."""
    rate = Fraction(24000, 1001)
    source = encode(tmp_path / "in.mkv", moving(12), rate)
    frames = list(video.open_source(str(source)).frames())
    assert [frame.time for frame in frames] == [i / rate for i in range(12)]


def test_unequal_times_are_honoured(tmp_path):
    moments = [Fraction(k, 30) for k in (0, 1, 3, 4, 8, 9)]
    source = encode(tmp_path / "in.mp4", moving(6), 30, moments)
    run(source, tmp_path / "out.mp4", "--factor", "2")
    middles = [(a + b) / 2 for a, b in zip(moments, moments[1:])]
    assert decode(tmp_path / "out.mp4")[0] == sorted(moments + middles)
    grid = Grid(rate=Fraction(60))
    assert grid.times(moments[1], moments[2]) == [Fraction(k, 60) for k in (2, 3, 4, 5)]


def test_a_file_that_begins_late_keeps_its_beginning(tmp_path):
    late = [Fraction(1, 2) + Fraction(i, 25) for i in range(8)]
    source = encode(tmp_path / "in.mp4", moving(8), 25, late)
    run(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(1, 2) + Fraction(i, 50) for i in range(15)]


@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 3), Fraction(17, 10), Fraction(19, 5)])
@pytest.mark.parametrize("name", ["in.mp4", "in.mkv"])
def test_reading_from_the_middle_gives_the_frames_from_there(tmp_path, name, start):
    source = video.open_source(str(encode(tmp_path / name, moving(100), g="30", bf="3", crf="10")))
    whole = [frame for frame in source.frames() if frame.time >= start]
    assert len(whole) == 100 - -(-start * 25 // 1)
    for a, b in zip(whole, source.frames(start), strict=True):
        assert a.time == b.time and (a.image == b.image).all()


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
def test_colours_are_those_of_the_standard_to_one_grey_level(tmp_path, matrix, extent):
    """Flat frames of Y, Cb, Cr values, read, blended by the average, written, and decoded to Y, Cb, Cr again."""
    rng = np.random.default_rng(matrix)
    kr, kg, kb = RED_GREEN_BLUE[matrix]
    top, chroma, black = (219, 224, 16) if extent == 1 else (255, 255, 0)
    colours = rng.uniform(0.05, 0.95, (6, 3))
    luma = colours @ (kr, kg, kb)
    cb, cr = (colours[:, 2] - luma) / (2 * (1 - kb)), (colours[:, 0] - luma) / (2 * (1 - kr))
    levels = np.round(np.stack([luma * top + black, cb * chroma + 128, cr * chroma + 128], 1)).clip(0, 255)
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, extent
        stream.codec_context.color_primaries = stream.codec_context.color_trc = matrix
        for i, (y, u, v) in enumerate(levels):
            frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
            for plane, value in zip(frame.planes, (y, u, v)):
                plane.update(np.full(plane.buffer_size, value, np.uint8))
            frame.pts, frame.colorspace, frame.color_range = i, matrix, extent
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    read = [frame.image for frame in video.open_source(str(source)).frames()]
    exact = (levels - (black, 128, 128)) / (top, chroma, chroma)
    red = exact[:, 0] + 2 * (1 - kr) * exact[:, 2]
    blue = exact[:, 0] + 2 * (1 - kb) * exact[:, 1]
    rgb = np.stack([red, (exact[:, 0] - kr * red - kb * blue) / kg, blue], 1).clip(0, 1) * 255
    assert all(np.abs(image - colour).max() <= 1 for image, colour in zip(read, rgb))
    run(source, tmp_path / "out.mp4", "--codec", "ffv1", "--cuts", "no")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
    assert tags == (matrix, extent, matrix, matrix)
    got = np.array([[np.frombuffer(plane, np.uint8)[0] for plane in frame.planes] for frame in frames])
    assert (got[::2] == levels).all()
    assert np.abs(got[1::2] - (levels[:-1] + levels[1:]) / 2).max() <= 1.5  # half a level of rounding on either way


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


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.mov"])
def test_the_shape_of_pixels_survives(tmp_path, name):
    run(encode(tmp_path / "in.mp4", moving(4), aspect=Fraction(16, 11)), tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def test_ten_bits_become_eight_and_it_is_said(tmp_path, capsys):
    source = encode(tmp_path / "in.mp4", moving(4), pix_fmt="yuv420p10le")
    run(source, tmp_path / "out.mp4", "--crf", "0")
    assert "yuv420p10le" in capsys.readouterr().err
    deep, flat = planes(source), planes(tmp_path / "out.mp4")
    assert all(np.abs(a / 4 - b).max() <= 1 for a, b in zip(deep, flat[::2]))


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
    assert ("is odd" in capsys.readouterr().err) == bool(height % 2 or width % 2)
    run(tmp_path / "frames", tmp_path / "out")
    assert all((io.read_image(tmp_path / "out" / f"{2 * i + 1:08d}.png") == frames[i]).all() for i in range(3))


# Sound


def test_sound_is_copied_packet_by_packet(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(60), sound=True)
    run(source, tmp_path / "out.mp4", "--segment", "1")
    assert packets(tmp_path / "out.mp4", "audio") == packets(source, "audio")
    assert len(packets(source, "audio")) > 90
    run(source, tmp_path / "out.mkv", "--fps", "60")
    assert [data for _, data in packets(tmp_path / "out.mkv", "audio")] == [
        data for _, data in packets(source, "audio")
    ]


def test_slow_motion_is_silent_and_says_so(tmp_path, capsys):
    run(encode(tmp_path / "in.mp4", moving(10), sound=True), tmp_path / "out.mp4", "--slow", "2")
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


# Cuts and repeats


def test_nothing_is_invented_across_a_cut(tmp_path):
    frames = moving(6, seed=1) + moving(6, seed=2)
    run(encode(tmp_path / "in.mp4", frames), tmp_path / "out.mp4", "--factor", "4", "--codec", "ffv1")
    _, images = decode(tmp_path / "out.mp4")
    assert len(images) == 45
    assert all((images[20 + k] == images[20]).all() for k in range(4))  # the last frame before the cut, repeated
    assert not (images[17] == images[16]).all() and not (images[25] == images[24]).all()
    run(tmp_path / "in.mp4", tmp_path / "no.mp4", "--factor", "4", "--codec", "ffv1", "--cuts", "no")
    assert not (decode(tmp_path / "no.mp4")[1][21] == images[20]).all()


def test_cuts_between_real_clips_are_found_and_motion_is_not_taken_for_one(real_data):
    """carphone and dogs-jump: little motion; bmx-trees, running_car: much, up to 69 pixels in 972."""
    names = ("carphone.mp4", "davis_dogs-jump.mp4", "davis_bmx-trees", "propainter_running_car.mp4", "pysot_bag.avi")
    clips = []
    for name in names:
        frames = video.open_source(str(real_data / "clips" / name)).frames()
        clips.append([timeline.thumbnail(frame.image) for _, frame in zip(range(50), frames)])
    for thumbnails in clips:
        assert max(map(timeline.unexplained, thumbnails, thumbnails[1:])) < timeline.CUT
    joints = [(a[i], b[-1 - i]) for a in clips for b in clips if a is not b for i in (0, 20, 40)]
    assert min(timeline.unexplained(a, b) for a, b in joints) > timeline.CUT


def test_repeated_frames_are_dropped_and_their_times_filled_with_motion(tmp_path):
    """12 frames a second shown as 24: without the repeats the average lies half-way at every second time."""
    frames = moving(5, step=4)
    for i in range(10):
        io.write_image(tmp_path / "frames" / f"{i}.png", frames[i // 2])
    run(tmp_path / "frames", tmp_path / "out", "--factor", "1", "--dedup")
    images = [io.read_image(path).astype(float) for path in io.list_images(tmp_path / "out")]
    assert len(images) == 10 and all((a == b).all() for a, b in zip(images[::2], frames))
    for before, made, after in zip(images[::2], images[1::2], images[2::2]):
        assert np.abs(made - (before + after) / 2).max() <= 0.51


def test_a_picture_that_stands_still_is_not_stretched_into_motion():
    still = [Frame(Fraction(i), np.zeros((64, 64, 3), np.uint8)) for i in range(10)]
    moved = Frame(Fraction(10), np.full((64, 64, 3), 50, np.uint8))
    pairs = list(timeline.steps([*still, moved], Grid(2), Fraction(100), cut=None, repeat=timeline.is_repeat))
    spans = [(int(step.first.time), int(step.second.time)) for step in pairs]
    assert spans == [(0, 4), (4, 8), (8, 10), (10, 10)]


# What is in between


def test_weights_that_know_the_middle_alone_halve_again_and_again(tmp_path):
    model = formula_weights(models.build("IFRNet_S"))
    model.decoder4.convblock[0][0].weight.data[:, -1] = 0
    call = models.Interpolator(model, "cpu")
    img0, img1 = (formula_image(32, 48, seed)[None] for seed in (0, 1))
    half = call(img0, img1)[:, 0]
    quarter = call(img0, half)[:, 0]
    late = call(call(half, img1)[:, 0], img1)[:, 0]
    ts = [Fraction(1, 4), Fraction(1, 2), Fraction(7, 8)]
    made = list(between(call, img0, img1, ts))
    assert all(torch.equal(a, b) for a, b in zip(made, (quarter, half, late), strict=True))
    path = tmp_path / "half.pth"
    torch.save(model.state_dict(), path)
    source, out = encode(tmp_path / "in.mp4", moving(3)), tmp_path / "out.mp4"
    options = interpolate_video.parser().parse_args([str(source), str(out), "--factor", "3", "--checkpoint", str(path)])
    with pytest.raises(ValueError, match="trained at t = 0.5 alone.*IFRNet_S"):
        interpolate_video.main(options)
    options.factor, options.fps = None, Fraction(30)
    with pytest.raises(ValueError, match="trained at t = 0.5 alone.*IFRNet_S"):
        interpolate_video.main(options)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["half.pth", "in.mp4"]


def test_batches_of_pairs_give_the_frames_of_single_ones():
    class Several(models.Interpolator):
        most = 3

        def pairs_at_once(self, height, width):
            return self.most

    call = Several(formula_weights(models.build("IFRNet_S")), "cpu")
    frames = [Frame(Fraction(i), image) for i, image in enumerate(moving(6))]
    grid = Grid(3)
    several = list(infer(timeline.steps(frames, grid, Fraction(3), cut=None), call, 3))
    call.most = 1
    single = list(infer(timeline.steps(frames, grid, Fraction(3), cut=None), call, 3))
    assert [(p.segment, p.time) for p in several] == [(p.segment, p.time) for p in single]
    assert [p.segment for p in single] == [0] * 9 + [1] * 7
    difference = [np.abs(a.image().astype(int) - b.image()).max() for a, b in zip(several, single)]
    assert max(difference) <= 1


def test_every_pair_has_the_scale_that_is_asked_for_and_a_batch_the_smallest():
    class Asked(models.Interpolator):
        most, scales = 1, []

        def pairs_at_once(self, height, width):
            return self.most

        def each(self, img0, img1, times=(0.5,), scale=None):
            self.scales.append((len(img0), scale))
            return super().each(img0, img1, times, scale)

    call = Asked(formula_weights(models.build("IFRNet_S")), "cpu")
    frames = [Frame(Fraction(i), image) for i, image in enumerate(moving(5))]
    wanted = dict(zip((frame.image.sum() for frame in frames), (1.0, 0.5, 1.0, 0.25)))
    for call.most in (1, 2):
        list(infer(timeline.steps(frames, Grid(2), Fraction(9), cut=None), call, 9, lambda a, b: wanted[a.sum()]))
    assert call.scales == [(1, 1.0), (1, 0.5), (1, 1.0), (1, 0.25), (2, 0.5), (2, 0.25)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_frames_pass_through_a_gpu_unmixed():
    frames = [Frame(Fraction(i), image) for i, image in enumerate(moving(40))]

    def made(device: str) -> list[np.ndarray]:
        steps = timeline.steps(iter(frames), Grid(4), Fraction(3), cut=None)
        several = list(infer(steps, Average(device), 3))  # all of them on their way before the first is looked at
        return [picture.image() for picture in several]

    for there, here in zip(made("cuda"), made("cpu"), strict=True):
        assert np.abs(there.astype(int) - here).max() <= 1


def test_the_network_makes_the_frames_of_the_interpolator(tmp_path):
    model = formula_weights(models.build("IFRNet_S"))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    frames = moving(3)
    for i, frame in enumerate(frames):
        io.write_image(tmp_path / "frames" / f"{i}.png", frame)
    arguments = [
        str(tmp_path / "frames"),
        str(tmp_path / "out"),
        "--factor",
        "4",
        "--checkpoint",
        str(tmp_path / "weights.pth"),
    ]
    interpolate_video.main(interpolate_video.parser().parse_args(arguments))
    call = models.Interpolator(model, "cpu")
    expected = io.to_uint8(call(io.to_float(frames[1]), io.to_float(frames[2]), [0.25, 0.5, 0.75]))
    got = [io.read_image(tmp_path / "out" / f"{number:08d}.png") for number in (6, 7, 8)]
    assert all((a == b).all() for a, b in zip(expected, got))


# Going on


def long_clip(tmp_path):
    return encode(tmp_path / "in.mp4", moving(25) * 12, sound=True)


def wait_for(path, process):
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, process.stderr.read()
        time.sleep(0.002)


def test_a_killed_run_goes_on_and_ends_in_the_same_file(tmp_path):
    source = long_clip(tmp_path)
    run(source, tmp_path / "whole.mp4", "--segment", "1", model="dis")
    process = start(source, tmp_path / "out.mp4", "--segment", "1", model="dis")
    wait_for(tmp_path / ".out.mp4.parts" / "000003.mp4", process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out.mp4").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.mp4.parts").glob("0*")}
    assert 4 <= len(before) < 12
    with pytest.raises(ValueError, match="begun with factor 2.*not 4|begun with factor None, not 4"):
        run(source, tmp_path / "out.mp4", "--segment", "1", "--resume", "--factor", "4", model="dis")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.mp4.parts").glob("0*")} == before
    run(source, tmp_path / "out.mp4", "--segment", "1", "--resume", model="dis")
    assert packets(tmp_path / "out.mp4", "video") == packets(tmp_path / "whole.mp4", "video")
    assert packets(tmp_path / "out.mp4", "audio") == packets(tmp_path / "whole.mp4", "audio")
    assert not (tmp_path / ".out.mp4.parts").exists()


def test_an_interrupt_leaves_a_playable_file_and_can_be_resumed(tmp_path):
    source = long_clip(tmp_path)
    process = start(source, tmp_path / "out.mp4", "--segment", "1", model="dis")
    wait_for(tmp_path / ".out.mp4.parts" / "000002.mp4", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and b"--resume goes on" in errors.splitlines()[-1] and b"Traceback" not in errors
    times, _ = decode(tmp_path / "out.mp4")
    assert 150 <= len(times) < 599 and times == [Fraction(k, 50) for k in range(len(times))]
    sound = packets(tmp_path / "out.mp4", "audio")
    assert sound[-1][0] < times[-1] + 1
    run(source, tmp_path / "out.mp4", "--segment", "1", "--resume", model="dis")
    run(source, tmp_path / "whole.mp4", "--segment", "1", model="dis")
    assert packets(tmp_path / "out.mp4", "video") == packets(tmp_path / "whole.mp4", "video")


@pytest.mark.parametrize("options", [(), ("--fps", "60", "--dedup")])
def test_two_ranks_make_the_file_of_one(tmp_path, options):
    source = encode(tmp_path / "in.mp4", moving(70), sound=True)
    run(source, tmp_path / "one.mp4", "--segment", "1", *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", SCRIPT]
    command += [str(source), str(tmp_path / "two.mp4"), "--segment", "1", "--model_name", "average", *options]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert packets(tmp_path / "two.mp4", "video") == packets(tmp_path / "one.mp4", "video")
    assert packets(tmp_path / "two.mp4", "audio") == packets(source, "audio")


# Other ways in and out


def test_gif_in_and_out(tmp_path):
    # Grey: its levels fit a palette of 256 colours, so that what is compared is the frame and not the dithering.
    grey = [image[..., 1:2].repeat(3, 2) for image in moving(6)]
    run(encode(tmp_path / "in.mp4", grey, 20), tmp_path / "out.gif")
    with av.open(str(tmp_path / "out.gif")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(round(100 * k / 40), 100) for k in range(11)]
    _, images = decode(tmp_path / "out.gif")
    _, original = decode(tmp_path / "in.mp4")
    assert len(images) == 11 and np.abs(images[0].astype(int) - original[0]).mean() < 4
    run(tmp_path / "out.gif", tmp_path / "back.mp4", "--factor", "1", "--codec", "ffv1")
    _, back = decode(tmp_path / "back.mp4")
    assert all((a == b).all() for a, b in zip(images, back, strict=True))


def test_the_last_frame_of_a_gif_is_shown_as_long_as_the_others(tmp_path, clip):
    run(clip, tmp_path / "out.gif", "--factor", "1")
    with Image.open(tmp_path / "out.gif") as animation:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(animation)] == [40] * 20


def test_y4m_pipes_both_ways(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(6), aspect=Fraction(4, 3))
    first = start(source, "-", stdout=subprocess.PIPE)
    stream = first.communicate(timeout=60)[0]
    assert first.returncode == 0 and stream.startswith(b"YUV4MPEG2 W128 H64 F50:1 ") and b" A4:3 " in stream[:80]
    second = start("-", tmp_path / "out.mp4", "--crf", "0", stdin=subprocess.PIPE)
    second.communicate(stream, timeout=60)
    times, _ = decode(tmp_path / "out.mp4")
    assert second.returncode == 0 and times == [Fraction(k, 100) for k in range(21)]
    assert all((a == b).all() for a, b in zip(planes(source), planes(tmp_path / "out.mp4")[::4]))


def test_a_pipe_without_frames_is_refused(tmp_path, monkeypatch):
    for data, words in (
        (b"", "no y4m; ffmpeg"),
        (b"an mp4", "no y4m; ffmpeg"),
        (b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n", "not a single frame"),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(data)))
        with pytest.raises(ValueError, match=f"standard input.*{words}"):
            run("-", tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["side", "split"])
def test_a_comparison_shows_repeated_frames_beside_made_ones(tmp_path, clip, how):
    run(clip, tmp_path / "plain", "--factor", "2")
    run(clip, tmp_path / "both", "--factor", "2", "--compare", how)
    made = io.read_image(tmp_path / "plain" / "00000002.png")
    repeated = io.read_image(tmp_path / "plain" / "00000001.png")
    both = io.read_image(tmp_path / "both" / "00000002.png")
    if how == "side":
        assert (both == np.concatenate([repeated, made], 1)).all()
    else:
        assert (both[:, :64] == repeated[:, :64]).all() and (both[:, 65:] == made[:, 65:]).all()
        assert (both[:, 64] == 255).all()


def test_a_preview_is_one_picture_of_several_places(tmp_path, clip):
    run(clip, tmp_path / "sheet.png", "--preview", "3", "--factor", "4")
    sheet = io.read_image(tmp_path / "sheet.png")
    assert sheet.shape == (3 * HEIGHT, 5 * WIDTH, 3)
    _, images = decode(clip)
    # The first place is 19/25 s / 6: the next frame is the one of 4/25 s, and the one after it ends the row.
    for cell, number in ((sheet[:HEIGHT, :WIDTH], 4), (sheet[:HEIGHT, -WIDTH:], 5)):
        assert np.argmin([np.abs(cell.astype(int) - image).mean() for image in images]) == number


# The pipeline


def test_work_ahead_keeps_the_order_and_waits_when_enough_is_ready():
    made = []

    def numbers():
        for i in range(100):
            made.append(i)
            yield i

    iterator = ahead(numbers(), 3)
    assert next(iterator) == 0
    time.sleep(0.1)
    assert len(made) <= 5
    assert list(iterator) == list(range(1, 100))


def test_work_ahead_hands_on_what_was_raised_and_ends_when_closed():
    closed = []

    def failing():
        try:
            yield 1
            raise ValueError("no more")
        finally:
            closed.append("failing")

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append("endless")

    with pytest.raises(ValueError, match="no more"):
        list(ahead(ahead(failing(), 2), 2))
    iterator = ahead(ahead(endless(), 2), 2)
    next(iterator)
    iterator.close()
    assert closed == ["failing", "endless"]


MEMORY = """
import sys
sys.path.insert(0, {root!r})
import interpolate_video
interpolate_video.main(interpolate_video.parser().parse_args(sys.argv[1:]))
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_length(tmp_path):
    peaks = []
    for count in (300, 3000):
        source = encode(tmp_path / f"{count}.mp4", moving(100) * (count // 100), preset="ultrafast")
        command = [sys.executable, "-c", MEMORY.format(root=str(ROOT)), str(source), str(tmp_path / f"out{count}.mp4")]
        options = ["--model_name", "average", "--segment", "5"]
        done = subprocess.run([*command, *options], capture_output=True, timeout=120, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.05 * peaks[0], peaks


# What goes wrong


def truncated(path, source, share):
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_broken_inputs_are_named_in_one_line(tmp_path, capsys):
    whole = encode(tmp_path / "whole.mp4", moving(50))
    stream = encode(tmp_path / "whole.mkv", moving(50))
    out = tmp_path / "out.mp4"
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as output:
        audio = output.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        output.mux(audio.encode(frame))
        output.mux(audio.encode(None))
    (tmp_path / "none").mkdir()
    io.write_image(tmp_path / "one" / "1.png", moving(1)[0])
    for i, width in enumerate((128, 96)):
        io.write_image(tmp_path / "two" / f"{i}.png", moving(1)[0][:, :width])
    cases = {
        tmp_path / "missing.mp4": "no such video",
        tmp_path / "text.mp4": "cannot be read as video",
        tmp_path / "empty.mp4": "cannot be read as video",
        tmp_path / "sound.m4a": "no video in this file",
        encode(tmp_path / "single.mp4", moving(1)): "1 frame",
        truncated(tmp_path / "half.mp4", whole, 0.5): "cannot be read as video",
        truncated(tmp_path / "half.mkv", stream, 0.5): "cut short",
        tmp_path / "none": "no pictures",
        tmp_path / "one": "1 frame",
        tmp_path / "two": "frames must have one size",
    }
    for path, words in cases.items():
        line = complaint(capsys, path, out)
        assert words in line and path.name in line, line
        assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".out*"))


def test_a_file_cut_short_behind_its_index_is_noticed(tmp_path, capsys):
    source = encode(tmp_path / "in.mp4", moving(100))
    with (
        av.open(str(source)) as first,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "+faststart"}) as output,
    ):
        stream = output.add_stream_from_template(first.streams.video[0], opaque=True)
        for packet in first.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    path = truncated(tmp_path / "half.mp4", tmp_path / "fast.mp4", 0.6)
    assert "cut short" in complaint(capsys, path, tmp_path / "out.mp4")


def test_outputs_that_cannot_be_are_refused_before_anything_is_done(tmp_path, clip, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "exists.mp4").write_text("precious")
    assert "--overwrite" in complaint(capsys, clip, tmp_path / "exists.mp4")
    assert "is finished" in complaint(capsys, clip, tmp_path / "exists.mp4", "--resume")
    assert (tmp_path / "exists.mp4").read_text() == "precious"
    assert "file" in complaint(capsys, clip, tmp_path / "file" / "out.mp4")
    assert "unknown kind of output" in complaint(capsys, clip, tmp_path / "out.txt")
    assert "is the input" in complaint(capsys, clip, clip, "--overwrite")
    assert "give one of them" in complaint(capsys, clip, tmp_path / "out.mp4", "--factor", "2", "--fps", "60")
    assert "cannot be stored in .webm" in complaint(capsys, clip, tmp_path / "out.webm", "--codec", "h264")
    assert "'0' is not a whole number" in complaint(capsys, clip, tmp_path / "out.mp4", "--factor", "0")
    assert "no frame rate" in complaint(capsys, clip, tmp_path / "out.mp4", "--fps", "1/0")
    assert not list(tmp_path.glob("out*"))
    run(clip, tmp_path / "exists.mp4", "--overwrite")
    assert len(decode(tmp_path / "exists.mp4")[0]) == 39


def test_a_full_disk_is_one_line_and_what_is_complete_stays(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 128, 3), np.uint8)
    source = encode(tmp_path / "in.mp4", list(noise), preset="ultrafast", crf="30")

    def limit():  # of a file's size, which the system reports as it does a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))

    process = start(source, tmp_path / "out.mp4", "--crf", "0", "--cuts", "no", "--segment", "1", preexec_fn=limit)
    _, errors = process.communicate(timeout=60)
    last = errors.decode().splitlines()[-1]
    assert process.returncode == 2 and "File too large" in last and "Traceback" not in errors.decode(), errors.decode()
    assert not (tmp_path / "out.mp4").exists()


def test_only_a_folder_of_its_own_pictures_is_overwritten(tmp_path, clip, capsys):
    out = tmp_path / "out"
    out.mkdir()
    run(clip, out)  # an empty one is nothing to be lost
    assert len(list(out.iterdir())) == 39
    run(clip, out, "--overwrite", "--factor", "1")
    assert len(list(out.iterdir())) == 20
    (out / "letter.txt").write_text("precious")
    assert "letter.txt" in complaint(capsys, clip, out, "--overwrite")
    assert "in.mp4" in complaint(capsys, clip, tmp_path, "--overwrite")
    assert (out / "letter.txt").read_text() == "precious" and clip.exists() and len(list(out.iterdir())) == 21
    (tmp_path / "letter").write_text("precious")
    assert "no folder" in complaint(capsys, clip, tmp_path / "letter", "--overwrite")


def test_what_a_killed_run_has_done_is_not_thrown_away_unasked(tmp_path, clip, capsys):
    part = tmp_path / ".out.mp4.parts" / "000000.mp4"
    part.parent.mkdir()
    part.write_text("hours of work")
    assert "--resume goes on" in complaint(capsys, clip, tmp_path / "out.mp4")
    (tmp_path / "out.mp4").write_text("what was done until Ctrl-C")
    assert "--resume goes on" in complaint(capsys, clip, tmp_path / "out.mp4")
    assert part.exists()
    run(clip, tmp_path / "out.mp4", "--overwrite")
    assert len(decode(tmp_path / "out.mp4")[0]) == 39 and not part.exists()


def test_an_interrupt_before_anything_is_done_leaves_nothing(tmp_path, clip, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(interpolate_video.Job, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(clip, tmp_path / "out.mp4")
    assert not list(tmp_path.glob("*out*"))


def test_options_that_the_output_cannot_follow_are_refused(tmp_path, clip, capsys):
    assert "--crf 99: h264 takes 0 to 51" in complaint(capsys, clip, tmp_path / "out.mp4", "--crf", "99")
    assert "--crf -5" in complaint(capsys, clip, tmp_path / "out.webm", "--crf", "-5")
    assert "--crf 18" in complaint(capsys, clip, tmp_path / "out.mkv", "--crf", "18", "--codec", "ffv1")
    for name in ("out.gif", "out", "-"):
        assert "--codec h265" in complaint(capsys, clip, name if name == "-" else tmp_path / name, "--codec", "h265")
        assert "--crf 5" in complaint(capsys, clip, name if name == "-" else tmp_path / name, "--crf", "5")
    assert not list(tmp_path.glob("*out*"))


def test_damaged_frames_are_left_out_and_counted(tmp_path, capsys):
    source = encode(tmp_path / "in.mkv", moving(60), codec="ffv1", pix_fmt="yuv420p", g="1")
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = b"\xff" * 3000
    source.write_bytes(data)
    try:
        run(source, tmp_path / "out.mp4")
    except ValueError as error:
        assert "in.mkv" in str(error)
    else:
        assert "damaged" in capsys.readouterr().err


def y4m(count):
    rng = np.random.default_rng(0)
    frames = [b"FRAME\n" + rng.integers(0, 256, HEIGHT * WIDTH * 3 // 2, np.uint8).tobytes() for _ in range(count)]
    return f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 C420jpeg\n".encode() + b"".join(frames)


@pytest.mark.parametrize("lost", [0, 1, 5000, HEIGHT * WIDTH * 3 // 2 + 3])
@pytest.mark.parametrize("piped", [False, True])
def test_a_raw_video_whose_last_frame_is_cut_keeps_the_others_and_says_so(tmp_path, monkeypatch, capsys, lost, piped):
    data = y4m(4)[: -lost or None]
    (tmp_path / "in.y4m").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(data)))
    run("-" if piped else tmp_path / "in.y4m", tmp_path / "out.mp4", "--factor", "1")
    assert len(decode(tmp_path / "out.mp4")[0]) == (3 if lost else 4)
    name = "standard input" if piped else "in.y4m"
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(told) == (lost > 0) and all(f"{name}: 1 frame left out, damaged or cut short" in line for line in told)


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


def test_a_step_across_a_cut_asks_for_nothing_in_between():
    asked = []

    def cut(first, second):
        asked.append((first.mean(), second.mean()))
        return second.mean() > 100

    frames = [Frame(Fraction(i), np.full((8, 8, 3), value, np.uint8)) for i, value in enumerate((0, 10, 200, 210))]
    pairs: list[Step] = list(timeline.steps(frames, Grid(2), Fraction(10), cut=cut))
    assert [step.ts for step in pairs] == [[0, Fraction(1, 2)], [0, 0], [0, 0], [0]]
    assert len(asked) == 3
    made = list(infer(iter(pairs), Average("cpu"), 10))
    assert [picture.made is not None for picture in made] == [False, True, False, False, False, False, False]
