"""The colours of what interpolate_video.py reads and writes: exact, of every kind of input, and tagged as such."""

import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
from video_files import HEIGHT, WIDTH, decode, encode, moving, planes, run

from utils import colours, io, video

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


@pytest.mark.parametrize("extent", [1, 2])
@pytest.mark.parametrize("depth", [12, 16])
def test_the_largest_value_is_the_largest_of_fewer_bits(tmp_path, depth, extent):
    """Of the limited range too, where it is brighter than white."""
    whole = [np.full((HEIGHT, WIDTH), 2**depth - 1, np.uint16)] * 3
    source = store(tmp_path / "in.mkv", [whole] * 2, f"yuv444p{depth}le", extent)
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", "--cuts", "no")
    assert all((samples == 1023).all() for samples in planes(tmp_path / "out.mkv")[::2])


@pytest.mark.parametrize("pix_fmt", ["gbrp10le", "gbrp16le", "yuv444p10le", "gray16le"])
def test_eight_bits_that_are_read_of_more_are_the_nearest(tmp_path, pix_fmt):
    most = 2 ** av.VideoFormat(pix_fmt).components[0].bits - 1
    ramp = np.linspace(0, most, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    others = {"gray": [], "yuv4": [np.full_like(ramp, (most + 1) // 2)] * 2, "gbrp": [ramp] * 2}[pix_fmt[:4]]
    source = store(tmp_path / "in.mkv", [[ramp, *others]] * 2, pix_fmt, 0 if pix_fmt[0] == "g" else 2)
    for frame in video.open_source(str(source)).frames():
        assert np.abs(frame.image - ramp[..., None] * (255 / most)).max() <= 0.51


@pytest.mark.parametrize("pix_fmt", ["gbrp10le", "gbrp12le", "gbrp16le"])
def test_ten_bits_of_rgb_are_the_nearest_to_those_of_the_input(tmp_path, pix_fmt):
    most = 2 ** av.VideoFormat(pix_fmt).components[0].bits - 1
    ramp = np.linspace(0, most, HEIGHT * WIDTH).round().astype(np.uint16)
    source = store(tmp_path / "in.mkv", [[ramp, ramp[::-1].copy(), ramp]] * 2, pix_fmt)
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", "--cuts", "no")
    exact = np.concatenate([ramp, ramp[::-1], ramp]) * (1023 / most)
    made = planes(tmp_path / "out.mkv")
    assert len(made) == 3 and all(np.abs(samples - exact).max() <= 0.51 for samples in made)


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
