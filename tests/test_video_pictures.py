"""The pictures of what interpolate_video.py writes: unchanged, upright, of their shape."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from video_files import decode, encode, moving, planes, run

from datasets import clips
from utils import io, video, video_out


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


def with_matrix(path, a, b, c, d, **how):
    """An MP4 file whose frames are to be shown by this matrix. how: see encode."""
    source = encode(path, moving(4), **how)
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
def test_a_turned_video_keeps_its_values_where_bits_are_reduced(tmp_path, matrix, upright):
    source = with_matrix(tmp_path / "in.mp4", *matrix, codec="ffv1", pix_fmt="yuv420p10le")
    with av.open(str(source)) as container:
        given = [np.frombuffer(f.planes[0], np.uint16).reshape(64, 128) for f in container.decode(video=0)]
    run(source, tmp_path / "out.mkv", "--codec", "h264", "--crf", "0", "--factor", "1")
    for lying, made in zip(given, planes(tmp_path / "out.mkv"), strict=True):
        exact = upright(lying[..., None])[..., 0] / 4
        assert np.abs(made[: lying.size].reshape(exact.shape) - exact).max() <= 0.5


@UPRIGHT
@pytest.mark.parametrize("extent", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv422p10le"])
def test_a_turned_video_keeps_its_colours_whatever_its_chroma(tmp_path, matrix, upright, pix_fmt, extent):
    """FFmpeg's filters do not take all formats: what is converted for them must not get another matrix or range."""
    source = with_matrix(tmp_path / "in.mp4", *matrix, pix_fmt=pix_fmt, colour=(1, extent))
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", "--factor", "1")
    for lying, made in zip(planes(source), planes(tmp_path / "out.mkv"), strict=True):
        luma, *chroma = np.split(lying, [64 * 128, 64 * 192])
        assert (made[: luma.size] == upright(luma.reshape(64, 128, 1)).ravel()).all()
        got = np.split(made[luma.size :], 2)
        assert all(abs(a.mean() - b.mean()) <= 1 for a, b in zip(chroma, got, strict=True))
        assert got[0].size == luma.size // (1 if matrix[0] == 0 else 2)  # of 4:2:2 on its side none is lost, either


@UPRIGHT
@pytest.mark.parametrize("colour", [None, (1, 1), (1, 2)])
def test_footage_to_train_on_and_to_score_is_turned_as_a_video_is(tmp_path, own_cache, matrix, upright, colour):
    source = with_matrix(tmp_path / "in.mp4", *matrix, colour=colour)
    (clip,) = clips.open_clips(tmp_path)
    assert all((upright(a) == b).all() for a, b in zip(decode(source)[1], clip.frames[:], strict=True))


def test_footage_of_which_only_the_keyframes_say_how_to_turn_it_is_turned_as_a_whole(tmp_path, own_cache):
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
    (clip,) = clips.open_clips(turned.parent)
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


def test_frames_of_interlaced_video_are_like_those_between(tmp_path):
    """OpenCV cannot convert those that are marked as interlaced after one that is not, and shows the one before."""
    source = encode(tmp_path / "in.mpg", moving(4), codec="mpeg2video", flags="+ilme+ildct", qscale="2")
    run(source, tmp_path / "out.mkv", "--codec", "ffv1")
    with av.open(str(source)) as given, av.open(str(tmp_path / "out.mkv")) as made:
        assert all(frame.interlaced_frame for frame in given.decode(video=0))
        assert not any(frame.interlaced_frame for frame in made.decode(video=0))
    kept = planes(tmp_path / "out.mkv")[::2]
    assert len(kept) == 4 and all(np.array_equal(a, b) for a, b in zip(kept, planes(source)))


def test_names_in_capitals_are_names_all_the_same(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(4))
    for name in ("out.mp4", "OUT.MP4", "out.m4v"):
        run(source, tmp_path / name, "--codec", "h265")
        data = (tmp_path / name).read_bytes()
        assert b"hvc1" in data and data.index(b"moov") < data.index(b"mdat")
