"""Videos of more than 8 bits per colour: 10 are kept where the codec has them, and what is lost is told."""

from fractions import Fraction
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from video_files import HEIGHT, WIDTH, encode, interrupted_after, moving, planes, run

from utils import io, motion, shots, video_out


def ramps(count, bits=10):
    """Ramps of all colours, one level of so many bits from pixel to pixel, that move: RGB uint16."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    shades = [np.stack([x + 128 * i, 2 * x + 8 * y + i, 1000 - 5 * x - y], -1) % 2**bits for i in range(count)]
    return [(shade * 65535 / (2**bits - 1)).round().astype(np.uint16) for shade in shades]


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "yuv444p10le", "gray10le", "gbrp10le"])
def test_ten_bits_are_kept(tmp_path, capsys, pix_fmt):
    source = encode(tmp_path / "in.mkv", ramps(4), codec="ffv1", pix_fmt=pix_fmt)
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", "--cuts", "no")
    before, after = planes(source), planes(tmp_path / "out.mkv")
    assert len(after) == 7 and all((a == b).all() for a, b in zip(before, after[::2]))
    assert "reduced to" not in capsys.readouterr().err
    if pix_fmt in ("yuv444p10le", "gbrp10le"):  # without loss of chroma on the way to RGB and back
        between = [(a.astype(float) + b) / 2 for a, b in zip(before, before[1:])]
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(between, after[1::2]))


@pytest.mark.parametrize(
    "pix_fmt, width, options",
    [("yuv422p10le", 1000, ("--codec", "h265", "--crf", "0")), ("gray10le", 36, ("--codec", "ffv1"))],
)
def test_frames_of_any_width_keep_all_their_pixels(tmp_path, pix_fmt, width, options):
    """FFmpeg's threads, each with some rows of a frame, write into each other's if a width fills no whole vectors."""
    ramp = np.linspace(5000, 60000, width).astype(np.uint16)[None, :, None].repeat(64, 0).repeat(3, 2)
    source = encode(tmp_path / "in.mkv", [ramp] * 40, codec="ffv1", pix_fmt=pix_fmt, colour=(1, 1))
    run(source, tmp_path / "out.mkv", "--factor", "1", *options)
    for before, after in zip(planes(source), planes(tmp_path / "out.mkv"), strict=True):
        difference = before[: width * 64].astype(int) - after[: width * 64]
        assert np.abs(difference).max() <= (0 if pix_fmt == "gray10le" else 16)


@pytest.mark.parametrize("name, codec", [("out.mp4", None), ("out.mkv", "h265"), ("out.mp4", "av1")])
def test_codecs_of_ten_bits_are_given_ten(tmp_path, capsys, name, codec):
    source = encode(tmp_path / "in.mkv", ramps(4), codec="ffv1", pix_fmt="yuv420p10le", colour=(1, 1))
    run(source, tmp_path / name, *(("--codec", codec) if codec else ()), "--crf", "5", "--cuts", "no")
    with av.open(str(tmp_path / name)) as container:
        stream, frame = container.streams.video[0], next(container.decode(video=0))
        assert stream.codec_context.name == {"av1": "libdav1d"}.get(codec, "hevc")
        assert (frame.format.name, frame.colorspace) == ("yuv420p10le", 1)
    before, after = planes(source), planes(tmp_path / name)
    assert all(np.abs(a.astype(float) - b).mean() < 4 for a, b in zip(before, after[::2], strict=True))
    assert any((frame % 4).any() for frame in after) and "reduced to" not in capsys.readouterr().err


@pytest.mark.parametrize("codec", ["h265", "av1"])
def test_the_best_quality_is_that_of_every_frame(tmp_path, codec):
    """SVT-AV1 spoils the second and the fourth of 10 bits, if it may hurry."""
    frames = [frame.astype(np.uint16) * 257 for frame in moving(4, step=12)]
    source = encode(tmp_path / "in.mkv", frames, codec="ffv1", pix_fmt="yuv420p10le", colour=(1, 1))
    for name, options in (("exact.mkv", ("ffv1",)), ("out.mkv", (codec, "--crf", "1"))):
        run(source, tmp_path / name, "--cuts", "no", "--codec", *options)
    pairs = zip(planes(tmp_path / "exact.mkv"), planes(tmp_path / "out.mkv"), strict=True)
    assert max(np.abs(a.astype(float) - b).mean() for a, b in pairs) < 1


@pytest.mark.parametrize(
    "pix_fmt, name, option, kept",
    [
        ("yuv420p10le", "out.mp4", ("--codec", "h264"), 8),
        ("yuv420p10le", "out.webm", (), 8),
        ("yuv420p10le", "out.gif", (), 8),
        ("yuv420p12le", "out.mp4", (), 10),
        ("gbrp16le", "out.mkv", ("--codec", "ffv1"), 10),
    ],
)
def test_bits_that_are_not_kept_are_told(tmp_path, capsys, pix_fmt, name, option, kept):
    source = encode(tmp_path / "in.mkv", ramps(3), codec="ffv1", pix_fmt=pix_fmt)
    run(source, tmp_path / name, *option)
    told = f"in.mkv: more than {kept} bits per colour ({pix_fmt}), reduced to {kept}"
    assert told in capsys.readouterr().err


HDR10 = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"


def light(path):
    """What the first frame of a file says of brightness, by PyAV alone: of the screen, and of the content."""
    with av.open(str(path)) as container:
        data = next(container.decode(video=0)).side_data
        screen, content = data.get(Type.MASTERING_DISPLAY_METADATA), data.get(Type.CONTENT_LIGHT_LEVEL)
    screen = [] if screen is None else np.divide(*np.frombuffer(screen, "<i4", 20).reshape(10, 2).T)
    content = [] if content is None else np.frombuffer(content, "<u4", 2)
    return list(screen), [value for value in content if value]  # 0 stands for unknown


@pytest.mark.parametrize("words", [HDR10, HDR10.split(":")[0], HDR10.split(":")[1], ""])
@pytest.mark.parametrize("codec", ["h265", "av1"])
def test_what_hdr_says_of_brightness_is_kept(tmp_path, capsys, words, codec):
    params = ":".join(["log-level=error", *filter(None, [words])])
    source = encode(tmp_path / "in.mp4", ramps(3), codec="libx265", pix_fmt="yuv420p10le", **{"x265-params": params})
    run(source, tmp_path / "out.mp4", "--codec", codec, "--cuts", "no")
    (screen, content), (kept, told) = light(source), light(tmp_path / "out.mp4")
    assert (len(screen), content) == (10 * ("display" in words), [1000, 400] * ("cll" in words))
    assert told == content and kept == pytest.approx(screen, rel=0.002, abs=2e-5)
    assert "brightness" not in capsys.readouterr().err
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", "--cuts", "no")
    assert ("HDR10 says of brightness is not stored with ffv1" in capsys.readouterr().err) == bool(words)
    run(source, tmp_path / "out.gif", "--cuts", "no")  # no codec to choose
    assert ("brightness is not stored in this kind of output; make a video" in capsys.readouterr().err) == bool(words)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shortest_parts_of_h265_have_their_times(tmp_path, count):
    """x265 makes up when so few frames are decoded, other times in every run."""
    form = video_out.Format(64, 64, Fraction(1), Fraction(1), codec="h265", keep="yuv420p10le")
    for attempt in range(8):
        writer = video_out.VideoWriter(tmp_path / f"{attempt}.mp4", form)
        for k in range(count):
            writer.write(np.full((64, 64, 3), 9000 * k, np.uint16), Fraction(10 + k))
        writer.close()
        with av.open(str(tmp_path / f"{attempt}.mp4")) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
            assert sorted(packet.pts * packet.time_base for packet in packets) == list(range(10, 10 + count))
            assert all(packet.dts <= packet.pts for packet in packets)


def test_parts_of_other_bits_are_not_gone_on_with(tmp_path, monkeypatch):
    source = encode(tmp_path / "in.mkv", ramps(30), codec="ffv1", pix_fmt="yuv420p10le")
    with monkeypatch.context() as before:  # as a version that knew of 8 bits alone
        before.setattr(video_out, "DEPTHS", {})
        assert "--resume continues" in interrupted_after(1, monkeypatch, source, tmp_path / "out.mkv", "--cuts", "no")
    with pytest.raises(ValueError, match="out.mkv: .*pixels"):
        run(source, tmp_path / "out.mkv", "--segment", "1", "--cuts", "no", "--resume")


def read16(folder):
    """The pictures of a folder, by OpenCV alone."""
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1] for path in sorted(folder.iterdir())]


def test_pictures_of_sixteen_bits_stay_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(io, "TOLD", bytearray(2))
    frames = ramps(3, bits=16)
    for number, frame in enumerate(frames):
        io.write_image(tmp_path / "in" / f"{number}.png", frame)
    run(tmp_path / "in", tmp_path / "out", "--cuts", "no")
    made = read16(tmp_path / "out")
    assert [image.dtype for image in made] == [np.uint16] * 5
    assert all((a == b).all() for a, b in zip(frames, made[::2]))
    between = [(a.astype(float) + b) / 2 for a, b in zip(frames, frames[1:])]
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(between, made[1::2]))
    run(tmp_path / "in", tmp_path / "out.mkv", "--codec", "ffv1", "--cuts", "no")
    told = capsys.readouterr().err
    assert told.count("bits per colour") == 1 and "more than 10 bits per colour (rgb48le), reduced to 10" in told
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams.video[0].pix_fmt == "gbrp10le"
    with pytest.warns(UserWarning, match="more than 8 bits per colour; 8 are kept"):
        run(tmp_path / "in", tmp_path / "out.gif", "--cuts", "no")
    assert "bits per colour" not in capsys.readouterr().err


def test_a_video_of_ten_bits_becomes_pictures_of_sixteen(tmp_path, capsys):
    source = encode(tmp_path / "in.mkv", ramps(3), codec="ffv1", pix_fmt="gbrp10le")
    run(source, tmp_path / "out", "--cuts", "no")
    assert all((a >> 6 == b >> 6).all() for a, b in zip(ramps(3), read16(tmp_path / "out")[::2], strict=True))
    assert "reduced to" not in capsys.readouterr().err


def test_ten_bits_become_the_nearest_eight(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(4), codec="ffv1", pix_fmt="yuv420p10le")
    run(source, tmp_path / "out.mp4", "--codec", "h264", "--crf", "0")
    assert all(np.abs(a / 4 - b).max() <= 0.5 for a, b in zip(planes(source), planes(tmp_path / "out.mp4")[::2]))


def test_cuts_repeats_and_motion_are_the_same_in_more_bits():
    frames = [*moving(3), *moving(3, seed=1, step=6)]
    deep = [frame.astype(np.uint16) * 257 for frame in frames]
    for pair, more in zip(pairwise(frames), pairwise(deep)):
        assert shots.change(*more) == pytest.approx(shots.change(*pair), abs=0.01)
        assert shots.is_cut(*more) == shots.is_cut(*pair)
        assert motion.motion(*more) == pytest.approx(motion.motion(*pair), abs=0.1)
    assert [shots.is_cut(*more) for more in pairwise(deep)] == [False, False, True, False, False]
    assert shots.is_repeat(deep[0] // 2, deep[0] // 2 + 40) and not shots.is_repeat(deep[0], deep[1])
