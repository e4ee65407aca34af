"""The pictures of what interpolate_video.py writes: unchanged, upright, of the standard's colours, of their shape."""

import sys
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from video_files import HEIGHT, WIDTH, decode, encode, moving, planes, run

from datasets import clips
from utils import colours, io, video, video_out


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
def test_colours_are_those_of_the_standard_to_one_level(tmp_path, matrix, extent, bits):
    """Flat frames of Y, Cb, Cr values, read, blended by the average, written, and decoded to Y, Cb, Cr again. Deep ones
    are read more exactly than the steps of 10 bits."""
    rng = np.random.default_rng(matrix)
    kr, kg, kb = RED_GREEN_BLUE[matrix]
    most, centre = 2**bits - 1, 2 ** (bits - 1)
    top, chroma, black = np.array((219, 224, 16)) * 2 ** (bits - 8) if extent == 1 else (most, most, 0)
    pix_fmt, kind = ("yuv420p", np.uint8) if bits == 8 else ("yuv420p10le", np.uint16)
    colours = np.concatenate([np.ones((1, 3)), rng.uniform(0.05, 0.95, (6, 3))])
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
    unit, near = (1, 0.6) if bits == 8 else (257, 0.05)
    assert all(np.abs(image / unit - colour).max() <= near for image, colour in zip(read, rgb))
    run(source, tmp_path / "out.mp4", "--codec", "ffv1", "--cuts", "no")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
    assert tags == (matrix, extent, matrix, matrix)
    got = np.array([[np.frombuffer(plane, kind)[0] for plane in frame.planes] for frame in frames])
    assert (got[::2] == levels).all()
    # Half a level of rounding on either way.
    assert np.abs(got[1::2] - (levels[:-1] + levels[1:]) / 2).max() <= 1.5


def noise(pix_fmt, extent, seed):
    """A frame whose pixels have random colours, with the full chroma or none: planes of integers, by BT.601."""
    depth, (kr, kg, kb) = av.VideoFormat(pix_fmt).components[0].bits, RED_GREEN_BLUE[6]
    red, green, blue = np.random.default_rng(seed).uniform(0.1, 0.9, (3, HEIGHT, WIDTH))
    luma, most, fine = kr * red + kg * green + kb * blue, 2**depth - 1, 2 ** (depth - 8)
    top, chroma, black = (most, most, 0) if extent == 2 else (219 * fine, 224 * fine, 16 * fine)
    planes = [luma * top + black]
    if not pix_fmt.startswith("gray"):
        planes += [(each - luma) / (2 - 2 * k) * chroma + 128 * fine for each, k in ((blue, kb), (red, kr))]
    return np.stack(planes).round().astype(np.uint16 if depth > 8 else np.uint8)


def store(path, frames, pix_fmt, extent=None, codec="ffv1"):
    """A file of frames whose bytes are given, for each a list of its planes' rows."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        if extent:
            stream.codec_context.colorspace, stream.codec_context.color_range = 6, extent
        for number, planes in enumerate(frames):
            frame = av.VideoFrame(WIDTH, HEIGHT, pix_fmt)
            for plane, rows in zip(frame.planes, planes, strict=True):
                rows = rows.reshape(plane.height, -1).view(np.uint8)
                plane.update(np.pad(rows, ((0, 0), (0, plane.line_size - rows.shape[1]))))
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("extent", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv444p10le", "gray"])
def test_new_frames_are_neither_brighter_nor_tinted(tmp_path, pix_fmt, extent):
    frames = [noise(pix_fmt, extent, seed) for seed in range(3)]
    source = store(tmp_path / "in.mkv", frames, pix_fmt, extent)
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", "--cuts", "no")
    made = planes(tmp_path / "out.mkv")[1::2]  # grey of the limited range has chroma there, too
    got = [samples[: frames[0].size].reshape(frames[0].shape).astype(float) for samples in made]
    expected = [(a.astype(float) + b) / 2 for a, b in zip(frames, frames[1:])]
    errors = np.stack([a - b for a, b in zip(got, expected, strict=True)])
    # Of 10 bits, where half of the means lie in the middle between two levels, the smallest error moves all these.
    assert np.abs(errors.mean((0, 2, 3))).max() <= (0.3 if "10" in pix_fmt else 0.1) and np.abs(errors).max() <= 1


@pytest.mark.parametrize("extent", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv444p10le", "yuv420p12le", "yuv444p16le", "gray10le", "gray16le"])
def test_fewer_bits_are_the_nearest(tmp_path, pix_fmt, extent):
    depth = av.VideoFormat(pix_fmt).components[0].bits
    frames = [noise(pix_fmt, extent, seed) for seed in range(3)]
    stored = [
        [y, *(chroma[: (HEIGHT // 2), : (WIDTH // 2)] if "420" in pix_fmt else chroma for chroma in rest)]
        for y, *rest in frames
    ]
    stored = [[np.ascontiguousarray(plane) for plane in each] for each in stored]
    source = store(tmp_path / "in.mkv", stored, pix_fmt, extent)
    unit = 255 / (2**depth - 1) if extent == 2 else 2.0 ** (8 - depth)
    run(source, tmp_path / "out.mkv", "--codec", "h264", "--crf", "0", "--cuts", "no")
    got = [each[: HEIGHT * WIDTH].reshape(HEIGHT, WIDTH) for each in planes(tmp_path / "out.mkv")]
    for given, made in zip(frames, got[::2], strict=True):
        assert np.abs(given[0] * unit - made).max() <= 0.5
    if pix_fmt.startswith("gray"):
        between = [(a[0] * unit + b[0] * unit) / 2 for a, b in zip(frames, frames[1:])]
        errors = np.stack(got[1::2]) - between
        # Rounded are the frames, of which it is the mean, then the mean itself, both in RGB, and what becomes of it.
        assert np.abs(errors.mean()) <= 0.1 and np.abs(errors).max() <= 1.4


@pytest.mark.parametrize("pix_fmt", ["gbrp10le", "gbrp16le", "yuv444p10le", "gray16le"])
def test_eight_bits_that_are_read_of_more_are_the_nearest(tmp_path, pix_fmt):
    most = 2 ** av.VideoFormat(pix_fmt).components[0].bits - 1
    ramp = np.linspace(0, most, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    others = {"gray": [], "yuv4": [np.full_like(ramp, (most + 1) // 2)] * 2, "gbrp": [ramp] * 2}[pix_fmt[:4]]
    source = store(tmp_path / "in.mkv", [[ramp, *others]] * 2, pix_fmt, 0 if pix_fmt[0] == "g" else 2)
    for frame in video.open_source(str(source)).frames():
        assert np.abs(frame.image - ramp[..., None] * (255 / most)).max() <= 0.51


@pytest.mark.parametrize("pix_fmt, top", [("rgb555be", 31), ("rgb565be", 63)])
def test_rgb_of_sixteen_bits_a_pixel_has_its_colours(tmp_path, pix_fmt, top):
    """As of old screen recordings in QuickTime. FFmpeg takes the two bytes of a pixel in the wrong order."""
    red, green, blue = np.random.default_rng(0).integers(0, (32, top + 1, 32), (HEIGHT, WIDTH, 3)).transpose(2, 0, 1)
    words = ((red * (top + 1) + green) * 32 + blue).astype(">u2")
    source = store(tmp_path / "in.mov", [[words]] * 2, pix_fmt, codec="rawvideo")
    exact = np.stack([red / 31, green / top, blue / 31], -1) * 255
    assert video.open_source(str(source)).pix_fmt == pix_fmt[:-2] + "le"
    for frame in video.open_source(str(source)).frames():
        assert np.abs(frame.image - exact).max() <= 1
    run(source, tmp_path / "out", "--cuts", "no")
    assert np.abs(io.read_image(tmp_path / "out" / "00000001.png") - exact).max() <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv410p", "yuv411p", "yuv440p", "yuv440p10le"])
def test_the_lossless_codec_keeps_all_kinds_of_chroma(tmp_path, pix_fmt):
    """As of DV, which has 4:1:1."""
    source = encode(tmp_path / "in.mkv", moving(3), codec="ffv1", pix_fmt=pix_fmt)
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", "--cuts", "no")
    before, after = planes(source), planes(tmp_path / "out.mkv")
    assert len(after) == 5 and all((a == b).all() for a, b in zip(before, after[::2]))


@pytest.mark.parametrize(
    "name, pix_fmt, made",
    [("in.mov", "uyvy422", "yuv422p"), ("in.mov", "yuyv422", "yuv422p"), ("in.avi", "nv12", "yuv420p")],
)
def test_frames_of_cameras_and_capture_cards_are_kept_by_the_lossless_codec(tmp_path, capsys, name, pix_fmt, made):
    """Their values are interleaved, no codec's are."""
    rng, given = np.random.default_rng(0), []
    for _ in range(3):
        y = rng.integers(16, 236, (HEIGHT, WIDTH), np.uint8)
        u, v = rng.integers(16, 241, (2, HEIGHT // (1 + (made == "yuv420p")), WIDTH // 2), np.uint8)
        given.append((y, u, v))
    order = {
        "uyvy422": lambda y, u, v: [u, y[:, ::2], v, y[:, 1::2]],
        "yuyv422": lambda y, u, v: [y[:, ::2], u, y[:, 1::2], v],
    }
    if pix_fmt == "nv12":
        frames = [[y, np.stack([u, v], -1)] for y, u, v in given]
    else:
        frames = [[np.stack(order[pix_fmt](*each), -1)] for each in given]
    source = store(tmp_path / name, frames, pix_fmt, codec="rawvideo")
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", "--cuts", "no")
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams.video[0].pix_fmt == made
    for each, samples in zip(given, planes(tmp_path / "out.mkv")[::2], strict=True):
        assert (np.concatenate([plane.ravel() for plane in each]) == samples).all()
    run(source, tmp_path / "out.mp4", "--cuts", "no")
    assert (f"chroma of 4:2:2 ({made}), reduced to 4:2:0" in capsys.readouterr().err) == (made == "yuv422p")


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
            near = 0.3 if deep and asked else 0.6 if source.name == "in.mkv" else 1
            assert all(np.abs(image / unit - exact[..., None]).max() <= near for image in read)
        run(source, tmp_path / out, "--codec", "ffv1")
        source = tmp_path / out
    with av.open(str(source)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == (5 if name == "out.mkv" else 9)
    for frame in frames:
        luma = np.frombuffer(frame.planes[0], levels.dtype).reshape(HEIGHT, -1)[:, :WIDTH]
        assert frame.color_range == (1 if extent == 1 else 2)
        assert np.abs(luma.astype(int) - levels).max() <= (1 if deep or extent == 1 else 0)


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


UPRIGHT = pytest.mark.parametrize(
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


def with_matrix(path, a, b, c, d):
    """An MP4 file whose frames are to be shown by this matrix."""
    source = encode(path, moving(4))
    data, (across, down) = bytearray(source.read_bytes()), (2**17, 2**15)  # the aspect of pixels is stored elsewhere
    box = np.array([a * across, b * across, 0, c * down, d * down, 0, 0, 0, 2**30], ">i4").tobytes()
    at = data.index(b"tkhd") + 44  # where the track's header has its matrix
    data[at : at + 36] = box
    source.write_bytes(data)
    return source


@UPRIGHT
def test_a_mirrored_video_comes_out_as_players_show_it(tmp_path, matrix, upright):
    source = with_matrix(tmp_path / "in.mp4", *matrix)
    run(source, tmp_path / "out.mp4", "--codec", "ffv1", "--factor", "1")
    lying, got = decode(source)[1], decode(tmp_path / "out.mp4")[1]
    assert all(np.abs(upright(a).astype(int) - b).mean() <= 0.5 for a, b in zip(lying, got)) and len(got) == 4


@UPRIGHT
def test_footage_to_train_on_and_to_score_is_turned_as_a_video_is(tmp_path, matrix, upright):
    source = with_matrix(tmp_path / "in.mp4", *matrix)
    (clip,) = clips.open_clips(tmp_path, cache=tmp_path / "cache")
    assert all((upright(a) == b).all() for a, b in zip(decode(source)[1], clip.frames[:], strict=True))


def test_footage_of_which_only_the_keyframes_say_how_to_turn_it_is_turned_as_a_whole(tmp_path):
    """H.264 has a message of its own for that, which PyAV gives with the frames that it precedes."""
    source, turned = encode(tmp_path / "in.mp4", moving(9), g="4"), tmp_path / "turned" / "in.mp4"
    turned.parent.mkdir()
    with av.open(str(source)) as container, av.open(str(turned), "w") as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        message = BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=180", stream)
        for packet in container.demux(stream):
            for marked in message.filter(packet) if packet.size else ():
                marked.stream = copy
                output.mux(marked)
    with av.open(str(turned)) as container:
        assert {abs(frame.rotation) for frame in container.decode(video=0)} == {0, 180}
    (clip,) = clips.open_clips(turned.parent, cache=tmp_path / "cache")
    assert all((a[::-1, ::-1] == b).all() for a, b in zip(decode(source)[1], clip.frames[:], strict=True))


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


@pytest.mark.parametrize(
    "matrix, transfer, told", [(6, 6, None), (1, 1, "usual matrix"), (9, 16, "of HDR"), (9, 18, "of HDR")]
)
def test_colours_that_an_output_cannot_tell_of_are_told(tmp_path, capsys, monkeypatch, matrix, transfer, told):
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = matrix, matrix, transfer
        for number, image in enumerate(moving(3)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.colorspace = number, matrix
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with open(tmp_path / "out.y4m", "wb", buffering=0) as pipe, monkeypatch.context() as during:
        during.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
        run(source, "-")
    said = capsys.readouterr().err
    assert ("usual matrix" in said, "of HDR" in said) == (told is not None, told == "of HDR")
    for name in ("out.gif", "out"):
        run(source, tmp_path / name)
        assert ("of HDR" in capsys.readouterr().err) == (told == "of HDR")
    run(source, tmp_path / "out.mkv")
    said = capsys.readouterr().err
    assert "usual matrix" not in said and "of HDR" not in said


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
@pytest.mark.parametrize("frames_say", [False, True])
def test_what_the_container_says_of_colours_counts_where_frames_say_nothing(tmp_path, codec, frames_say):
    """As of files that were tagged later, and WebM, whose frames have no primaries. SMPTE 240M: nobody's guess."""
    options = {"libx265": {"x265-params": "log-level=none"}}.get(codec, {"b": "1M"})
    source = encode(tmp_path / "in.mkv", moving(3), codec=codec, colour=(1, 1) if frames_say else None, **options)
    with av.open(str(source)) as first, av.open(str(tmp_path / "tagged.mkv"), "w") as output:
        stream = output.add_stream_from_template(first.streams.video[0], opaque=True)
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 7, 7, 7
        for packet in first.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    colour = video.open_source(str(tmp_path / "tagged.mkv")).colour
    assert (colour.matrix, colour.primaries, colour.transfer) == (1 if frames_say else 7, 7, 7)
    run(tmp_path / "tagged.mkv", tmp_path / "out.mkv", "--codec", "h264", "--cuts", "no")
    with av.open(str(tmp_path / "out.mkv")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == tuple(colour[:1] + colour[2:])


@pytest.mark.parametrize("pix_fmt, matrix, told", [("yuv420p", 1, False), ("yuv420p", 2, True), ("bgr0", 1, True)])
def test_tags_of_colours_that_mp4_loses_with_ffv1_are_told(tmp_path, capsys, pix_fmt, matrix, told):
    """FFmpeg's MP4 stores them for this codec only if matrix, primaries and transfer are known: RGB has no matrix."""
    with av.open(str(tmp_path / "in.mkv"), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = matrix, 1, 1, 1
        for number, image in enumerate(moving(3)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    run(tmp_path / "in.mkv", tmp_path / "out.mp4", "--codec", "ffv1")
    assert ("colour description is not stored in .mp4" in capsys.readouterr().err) == told
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.color_primaries, frame.color_trc) == ((2, 2) if told else (1, 1))


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("name, made_by, pix_fmt", [("in.mov", "png", "rgb24"), ("in.mp4", "libx264rgb", "rgb24")])
def test_rgb_becomes_yuv_that_does_not_say_it_is_rgb(tmp_path, name, made_by, pix_fmt, codec):
    """Screen recordings and pictures in a container: decoders give them the matrix of RGB, which VP9 and AV1 refuse
    for 4:2:0 and H.264 does not allow there."""
    source = encode(tmp_path / name, moving(4), codec=made_by, pix_fmt=pix_fmt)
    run(source, tmp_path / "out.mkv", "--codec", codec)
    with av.open(str(tmp_path / "out.mkv")) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuv420p" and frame.colorspace == colours.UNKNOWN and frame.color_range != colours.FULL


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("name, made_by, pix_fmt", [("in.mov", "png", "gray"), ("in.apng", "apng", "gray16be")])
def test_grey_png_becomes_yuv_that_does_not_say_it_is_rgb(tmp_path, name, made_by, pix_fmt, codec):
    """As above, though the frames are no RGB."""
    source = encode(tmp_path / name, moving(4), codec=made_by, pix_fmt=pix_fmt)
    run(source, tmp_path / "out.mkv", "--codec", codec)
    with av.open(str(tmp_path / "out.mkv")) as container:
        frame = next(container.decode(video=0))
    assert frame.colorspace == colours.UNKNOWN and frame.color_range == colours.FULL
    before, after = (decode(path)[1][0].astype(int) for path in (source, tmp_path / "out.mkv"))
    assert np.abs(after - before).mean() < 3


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
        ("yuv411p", "yuv411p", "yuv411p"),
        ("yuv410p", "yuv410p", "yuv420p"),
        ("yuv440p10le", "yuv440p10le", "yuv420p"),
    ],
)
def test_chroma_is_kept_where_nothing_is_lost_and_only_there(keep, lossless, raw):
    made = [video_out.Format(63, 47, 25, Fraction(1, 25), codec=codec, keep=keep) for codec in ("ffv1", "y4m", "h264")]
    assert [form.pix_fmt for form in made] == [lossless, raw, "yuv420p"]
    assert [form.stored for form in made] == [(63, 47), (63, 47), (64, 48)]


@pytest.mark.parametrize(
    "pix_fmt, name", [("yuv444p", "4:4:4"), ("yuv422p10le", "4:2:2"), ("yuv411p", "4:1:1"), ("yuv420p", None)]
)
def test_chroma_that_is_reduced_is_told(tmp_path, capsys, pix_fmt, name):
    source = encode(tmp_path / "in.mkv", moving(3), codec="ffv1", pix_fmt=pix_fmt)
    told = f"in.mkv: chroma of {name} ({pix_fmt}), reduced to 4:2:0"
    for codec in ("h264", "h265", "ffv1"):
        run(source, tmp_path / f"{codec}.mkv", "--codec", codec)
        assert (told in capsys.readouterr().err) == (name is not None and codec != "ffv1")
    run(source, tmp_path / "pictures")  # of RGB
    assert "reduced to 4:2:0" not in capsys.readouterr().err


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
    doubled = np.pad(frames[0], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert np.abs(images[0].astype(int) - doubled)[-2:, -2:].mean() < 40  # black instead would be 100 and more away
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
