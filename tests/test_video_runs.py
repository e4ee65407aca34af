"""Runs of interpolate_video.py through pipes, into folders and GIFs, what goes along, and what goes wrong."""

import errno
import os
import subprocess
import sys
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from conftest import files_up_to
from PIL import Image, ImageSequence
from video_files import HEIGHT, SCRIPT, WIDTH, complaint, decode, encode, moving, packets, planes, run

import interpolate_video
from models import fast
from models.baselines import interpolator
from utils import io, video_out


@pytest.fixture
def clip(tmp_path):
    return encode(tmp_path / "in.mp4", moving(20))


def test_what_an_edit_list_hides_is_not_heard_in_another_kind_of_file(tmp_path):
    """The sound's first second is cut away, as phones and editors do, and the output's container has no such lists."""
    whole = encode(tmp_path / "whole.mp4", moving(75), sound="aac")
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(whole)) as source, av.open(str(trimmed), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                second = int(1 / packet.time_base)
                packet.pts, packet.dts = packet.pts - second, packet.dts - second
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    with av.open(str(trimmed)) as container:
        assert any(packet.is_discard for packet in container.demux(audio=0)), "the test's own file hides something"
    run(trimmed, tmp_path / "out.mkv")
    sound, (times, _) = packets(tmp_path / "out.mkv", "audio"), decode(tmp_path / "out.mkv")
    assert abs(sound[0][0] - times[0]) < 0.2 and abs(sound[-1][0] - times[-1]) < 0.2


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


@pytest.mark.parametrize("name, factor, told", [("out.mkv", 8, True), ("out.mkv", 4, False), ("out.mp4", 8, False)])
def test_frames_closer_than_matroska_can_tell_are_told_of(tmp_path, capsys, name, factor, told):
    run(encode(tmp_path / "in.mp4", moving(5), 240), tmp_path / name, "--factor", factor)
    assert ("1920 frames a second; .mkv counts in milliseconds" in capsys.readouterr().err) == told
    times = decode(tmp_path / name)[0]
    assert len(times) == 4 * factor + 1 and (len(set(times)) < len(times)) == told


def test_frames_closer_than_a_gif_can_tell_are_all_there(tmp_path):
    moments = [Fraction(k, 1000) for k in (0, 40, 44, 48, 52, 120)]
    run(encode(tmp_path / "in.mkv", moving(6), 25, moments), tmp_path / "out.gif", "--factor", "1")
    with av.open(str(tmp_path / "out.gif")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(k, 100) for k in (0, 4, 5, 6, 7, 12)]


def test_the_last_frame_of_a_gif_is_shown_as_long_as_the_others(tmp_path, clip):
    run(clip, tmp_path / "out.gif", "--factor", "1")
    with Image.open(tmp_path / "out.gif") as animation:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(animation)] == [40] * 20


def test_the_encoder_decides_what_is_a_key_frame_whatever_the_input_had(tmp_path):
    run(encode(tmp_path / "in.mp4", moving(20), g="1"), tmp_path / "out.mp4")
    keys = []
    for name in ("in.mp4", "out.mp4"):
        with av.open(str(tmp_path / name)) as container:
            keys.append(sum(packet.is_keyframe for packet in container.demux(video=0)))
    assert keys == [20, 1]


def test_y4m_pipes_both_ways(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(6), aspect=Fraction(4, 3))
    command = [sys.executable, SCRIPT, "--model_name", "average"]
    first = subprocess.run([*command, source, "-"], capture_output=True, timeout=60)
    stream = first.stdout
    assert first.returncode == 0 and stream.startswith(b"YUV4MPEG2 W128 H64 F50:1 ") and b" A4:3 " in stream[:80]
    second = subprocess.run([*command, "-", tmp_path / "out.mp4", "--crf", "0"], input=stream, timeout=60)
    times, _ = decode(tmp_path / "out.mp4")
    assert second.returncode == 0 and times == [Fraction(k, 100) for k in range(21)]
    assert all((a == b).all() for a, b in zip(planes(source), planes(tmp_path / "out.mp4")[::4]))


@pytest.mark.parametrize("moments, told", [((0, 40, 42, 120, 160), False), ((0, 40, 80, 2080, 2120), True)])
def test_frames_at_unequal_times_are_all_there_in_a_pipe_and_lost_time_is_told(
    tmp_path, monkeypatch, capsys, moments, told
):
    times = [Fraction(moment, 1000) for moment in moments]
    source, pipe = encode(tmp_path / "in.mkv", moving(5), 25, times), BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
    run(source, "-")
    assert pipe.getvalue().count(b"FRAME\n") == 9
    assert ("y4m has no times" in capsys.readouterr().err) == told
    run(source, "-", "--fps", "25")
    assert "y4m has no times" not in capsys.readouterr().err


@pytest.mark.parametrize("buffering", [-1, 0])  # 0: as with python -u
def test_a_full_disk_behind_a_pipe_is_one_line_also_where_the_last_bytes_alone_find_no_room(
    tmp_path, monkeypatch, capsys, buffering
):
    source = encode(tmp_path / "in.mkv", [frame[:16, :16] for frame in moving(3)], codec="ffv1")
    frame = len(b"FRAME\n") + 16 * 16 * 3 // 2
    for size in (frame, 5 * frame):  # the header makes it a little too much for the whole
        with files_up_to(size), open(tmp_path / "out.y4m", "wb", buffering) as pipe:
            monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
            assert "standard output: File too large" in complaint(capsys, source, "-")
        assert (tmp_path / "out.y4m").stat().st_size == size  # closing it, as Python does at its end, raised nothing


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "gray"])
def test_frames_of_odd_size_pass_through_pipes_with_all_their_chroma(tmp_path, monkeypatch, pix_fmt):
    frames = [np.ascontiguousarray(frame[:47, :63]) for frame in moving(3)]
    source = encode(tmp_path / "in.mkv", frames, codec="ffv1", pix_fmt=pix_fmt)
    pipe = BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
    run(source, "-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(pipe.getvalue())))
    run("-", tmp_path / "out.mkv", "--factor", "1", "--codec", "ffv1")
    after = planes(tmp_path / "out.mkv")
    assert len(after) == 5 and all((a == b).all() for a, b in zip(planes(source), after[::2], strict=True))


def test_a_deep_pipe_tells_that_8_bits_are_kept_where_they_are(tmp_path, monkeypatch, capsys):
    levels = np.arange(32 * 16 * 3 // 2, dtype=np.uint16) % 1024
    data = b"YUV4MPEG2 W32 H16 F25:1 C420p10 XYSCSS=420P10\n" + 2 * (b"FRAME\n" + levels.tobytes())
    for codec, told in (("h264", True), ("ffv1", False)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(data)))
        run("-", tmp_path / f"{codec}.mkv", "--codec", codec)
        line = "standard input: more than 8 bits per colour (yuv420p10le), reduced to 8"
        assert (line in capsys.readouterr().err) == told
    assert (planes(tmp_path / "ffv1.mkv")[0] == levels).all()


@pytest.mark.parametrize("stream, names", [("stdin", ("-", "out.mp4")), ("stdout", ("in.mp4", "-"))])
@pytest.mark.parametrize("closed", [True, False])
def test_a_terminal_is_no_pipe(tmp_path, clip, capsys, monkeypatch, stream, names, closed):
    monkeypatch.setattr(sys, stream, None if closed else SimpleNamespace(buffer=SimpleNamespace(isatty=lambda: True)))
    assert "is a terminal or closed" in complaint(capsys, *(n if n == "-" else tmp_path / n for n in names))
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_pipe_without_frames_is_refused(tmp_path, monkeypatch):
    for data, words in (
        (b"", "not y4m; ffmpeg"),
        (b"an mp4", "not y4m; ffmpeg"),
        (b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n", "not a single frame"),
    ):
        for out in (tmp_path / "out.mp4", "-"):
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(data)))
            monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=BytesIO()))
            with pytest.raises(ValueError, match=f"standard input.*{words}"):
                run("-", out)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_the_same_on_a_disk_that_knows_no_hard_links(tmp_path, clip, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    run(clip, tmp_path / "linked")
    monkeypatch.setattr(Path, "hardlink_to", unknown)
    run(clip, tmp_path / "copied")
    linked, copied = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("linked", "copied"))
    assert len(copied) == 39 and copied == linked


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


def test_a_preview_is_one_picture_of_several_places(tmp_path, clip, capsys):
    run(clip, tmp_path / "sheet.png", "--preview", "3", "--factor", "4")
    assert f"wrote {tmp_path / 'sheet.png'}" in capsys.readouterr().err
    sheet = io.read_image(tmp_path / "sheet.png")
    assert sheet.shape == (3 * HEIGHT, 5 * WIDTH, 3)
    _, images = decode(clip)
    # The first place is 19/25 s / 6: the next frame is the one of 4/25 s, and the one after it ends the row.
    for cell, number in ((sheet[:HEIGHT, :WIDTH], 4), (sheet[:HEIGHT, -WIDTH:], 5)):
        assert np.argmin([np.abs(cell.astype(int) - image).mean() for image in images]) == number


def test_a_preview_shows_pairs_also_where_the_last_place_is_near_the_end(tmp_path):
    source = encode(tmp_path / "in.mkv", moving(3), codec="ffv1")
    run(source, tmp_path / "sheet.png", "--preview", "6")
    row, (_, images) = io.read_image(tmp_path / "sheet.png")[-HEIGHT:], decode(source)
    for cell, number in ((row[:, :WIDTH], 1), (row[:, -WIDTH:], 2)):
        assert np.argmin([np.abs(cell.astype(int) - image).mean() for image in images]) == number


# What goes wrong


def test_a_gif_of_unequal_times_is_judged_by_their_mean_and_keeps_its_last(tmp_path, capsys):
    pictures = [Image.fromarray(image) for image in moving(5)]
    held = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    pictures[0].save(tmp_path / "in.gif", duration=[100, 500, 40, 200, 2000], **held)
    for factor in (2, 4):
        run(tmp_path / "in.gif", tmp_path / f"{factor}.gif", "--factor", factor, "--cuts", "no")
        with Image.open(tmp_path / f"{factor}.gif") as animation:
            durations = [frame.info["duration"] for frame in ImageSequence.Iterator(animation)]
        assert len(durations) == 4 * factor + 1 and durations[-1] == 2000 and sum(durations) == 2840
    assert "frames a second; most viewers" not in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has other priorities")
def test_no_encoder_makes_a_program_more_important_than_others(tmp_path, clip):
    """SVT-AV1 does for root."""
    before = os.sched_getscheduler(0)
    run(clip, tmp_path / "out.mp4", "--codec", "av1")
    every = [int(thread) for thread in os.listdir("/proc/self/task")]
    assert {os.sched_getscheduler(thread) for thread in [0, *every]} == {before}


def test_what_a_gif_cannot_hold_is_told(tmp_path, capsys):
    run(encode(tmp_path / "in.mp4", moving(3), sound="aac", aspect=Fraction(4, 3)), tmp_path / "out.gif")
    said = capsys.readouterr().err
    assert "out.gif: without sound and subtitles, which this kind of output cannot hold" in said
    assert "out.gif: the pixel aspect ratio 4/3 becomes 1, and the picture narrower or wider" in said


def test_what_needs_a_file_is_refused_to_a_pipe(tmp_path, clip, monkeypatch):
    pipe = BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
    run(clip, "-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(pipe.getvalue())))
    with pytest.raises(ValueError, match="standard input: a preview needs to seek; give a file"):
        run("-", tmp_path / "sheet.png", "--preview", "2")
    monkeypatch.setattr(interpolate_video.distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="only one process can write to a pipe; start without torchrun"):
        run(clip, "-")


def test_outputs_that_cannot_be_are_refused_before_anything_is_done(tmp_path, clip, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "exists.mp4").write_text("precious")
    assert "--overwrite" in complaint(capsys, clip, tmp_path / "exists.mp4")
    assert "is finished" in complaint(capsys, clip, tmp_path / "exists.mp4", "--resume")
    assert (tmp_path / "exists.mp4").read_text() == "precious"
    assert "file: is a file, not a folder" in complaint(capsys, clip, tmp_path / "file" / "out.mp4")
    assert "unknown kind of output" in complaint(capsys, clip, tmp_path / "out.txt")
    assert "ending without a name" in complaint(capsys, clip, tmp_path / ".mp4")
    assert "101 places are more than 100" in complaint(capsys, clip, tmp_path / "sheet.png", "--preview", "101")
    assert "is also the input" in complaint(capsys, clip, clip, "--overwrite")
    assert "give only one of them" in complaint(capsys, clip, tmp_path / "out.mp4", "--factor", "2", "--fps", "60")
    assert "cannot be stored in .webm" in complaint(capsys, clip, tmp_path / "out.webm", "--codec", "h264")
    for codec in ("vp9", "av1"):
        assert f"{codec} cannot be stored in .mov" in complaint(capsys, clip, tmp_path / "out.mov", "--codec", codec)
    assert "100 frames a second; give --fps 50" in complaint(capsys, clip, tmp_path / "out.gif", "--fps", "101")
    assert "'0' is not a whole number" in complaint(capsys, clip, tmp_path / "out.mp4", "--factor", "0")
    assert "not a frame rate" in complaint(capsys, clip, tmp_path / "out.mp4", "--fps", "1/0")
    for slow in ("0.5", "1/0", "nan", "1001"):
        assert f"'{slow}' is not a number from 1 to 1000" in complaint(
            capsys, clip, tmp_path / "out.mp4", "--slow", slow
        )
    for tile in ("half", "31"):
        assert "not auto, none or a number" in complaint(capsys, clip, tmp_path / "out.mp4", "--tile", tile)
    assert "1001 is more than 1000 times" in complaint(capsys, clip, tmp_path / "out.mp4", "--factor", "1001")
    assert "a preview is a picture" in complaint(capsys, clip, tmp_path / "out.mp4", "--preview", "2")
    assert "not allowed with" in complaint(capsys, clip, tmp_path / "out.mp4", "--resume", "--overwrite")
    assert not list(tmp_path.glob("out*"))
    run(clip, tmp_path / "exists.mp4", "--overwrite")
    assert len(decode(tmp_path / "exists.mp4")[0]) == 39


def test_only_a_folder_of_its_own_pictures_is_overwritten(tmp_path, clip, capsys):
    out = tmp_path / "out"
    out.mkdir()
    run(clip, out)  # an empty folder has nothing to lose
    assert len(list(out.iterdir())) == 39
    run(clip, out, "--overwrite", "--factor", "1")
    assert len(list(out.iterdir())) == 20
    (out / "letter.txt").write_text("precious")
    assert "letter.txt" in complaint(capsys, clip, out, "--overwrite")
    assert "in.mp4" in complaint(capsys, clip, tmp_path, "--overwrite")
    assert (out / "letter.txt").read_text() == "precious" and clip.exists() and len(list(out.iterdir())) == 21
    (tmp_path / "letter").write_text("precious")
    assert "is a file, not a folder" in complaint(capsys, clip, tmp_path / "letter", "--overwrite")


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_a_link_stays_and_what_it_points_to_is_made_and_replaced(tmp_path, clip, capsys, name):
    link, target = tmp_path / name, tmp_path / "large disk" / name
    link.symlink_to(target)
    part = target.with_name(f".{name}.parts") / f"000000{target.suffix}"
    part.mkdir(parents=True)
    assert "--resume continues" in complaint(capsys, clip, link)
    for factor, expected in ((1, 20), (2, 39)):
        run(clip, link, "--overwrite", "--factor", factor)
        made = list(target.iterdir()) if target.is_dir() else decode(target)[0]
        assert link.is_symlink() and len(made) == expected and not part.exists()


def test_a_link_to_another_kind_of_file_or_to_nowhere_is_refused(tmp_path, clip, capsys):
    (tmp_path / "out.mp4").symlink_to(tmp_path / "blob")
    (tmp_path / "round.mp4").symlink_to(tmp_path / "round.mp4")
    for name in ("out.mp4", "round.mp4"):
        assert "has another extension or leads nowhere" in complaint(capsys, clip, tmp_path / name, "--overwrite")
    assert not (tmp_path / "blob").exists()
    (tmp_path / "frames.v2").mkdir()
    (tmp_path / "frames").symlink_to(tmp_path / "frames.v2")
    run(clip, tmp_path / "frames")
    assert len(list((tmp_path / "frames.v2").iterdir())) == 39


def test_fast_mode_is_the_default_where_it_pays(tmp_path, monkeypatch):
    source = encode(tmp_path / "in.mp4", moving(3))
    asked = []

    def noting(*args, **kwargs):
        asked.append(kwargs["pixels"])
        return interpolator(*args, **kwargs)

    monkeypatch.setattr(interpolate_video, "interpolator", noting)
    for number, (patience, words) in enumerate([(0, ()), (0, ("--fast",)), (1e12, ()), (0, ("--no_fast",))]):
        monkeypatch.setattr(fast, "PAYS", patience)
        run(source, tmp_path / f"{number}.mkv", "--codec", "ffv1", *words, model="IFRNet_S")
    assert asked == [pixels := 2 * HEIGHT * WIDTH, None, pixels, pixels]
    default, quick, small, eager = (np.stack(decode(tmp_path / f"{number}.mkv")[1]) for number in range(4))
    np.testing.assert_array_equal(small, eager)
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        np.testing.assert_array_equal(default, quick)
        assert np.abs(default.astype(int) - eager).max() <= 8


def test_options_that_the_output_cannot_follow_are_refused(tmp_path, clip, capsys):
    assert "--crf 99: h264 takes 0 to 51" in complaint(capsys, clip, tmp_path / "out.mp4", "--crf", "99")
    assert "--crf -5" in complaint(capsys, clip, tmp_path / "out.webm", "--crf", "-5")
    # FFmpeg would take 0, the best quality, for AV1's own choice, which is worse than the default.
    assert "--crf 0: av1 takes 1 to 63" in complaint(capsys, clip, tmp_path / "out.mp4", "--crf", "0", "--codec", "av1")
    assert "--crf 18" in complaint(capsys, clip, tmp_path / "out.mkv", "--crf", "18", "--codec", "ffv1")
    for name in ("out.gif", "out", "-"):
        assert "--codec h265" in complaint(capsys, clip, name if name == "-" else tmp_path / name, "--codec", "h265")
        assert "--crf 5" in complaint(capsys, clip, name if name == "-" else tmp_path / name, "--crf", "5")
    for words in (("--compare", "side"), ("--codec", "h264"), ("--crf", "0")):
        line = complaint(capsys, clip, tmp_path / "out.png", "--preview", "2", *words)
        assert f"{' '.join(words)}: has no effect on a preview" in line
    assert "--resume: has no effect" in complaint(capsys, clip, tmp_path / "out.png", "--preview", "2", "--resume")
    assert "--resume: a pipe does not keep what was written" in complaint(capsys, clip, "-", "--resume")
    assert "not a folder of pictures" in complaint(capsys, clip, tmp_path / "out.mp4", "--input_fps", "12")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("height, width", [(24, 64), (26, 66), (64, 4)])
def test_av1_takes_the_small_frames_that_its_encoder_ends_with(tmp_path, height, width):
    images = [image[:height, :width] for image in moving(3)]
    run(encode(tmp_path / "in.mkv", images, codec="ffv1", pix_fmt="bgr0"), tmp_path / "out.mp4", "--codec", "av1")
    assert len(decode(tmp_path / "out.mp4")[0]) == 5


def test_encoders_add_no_lines_of_their_own(tmp_path, clip, capfd):
    for codec in video_out.CODECS:
        run(clip, tmp_path / f"{codec}.mkv", "--codec", codec)
    assert "[info]" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "codec, height, width, what",
    [("h265", 2, 2, "them"), ("h265", 60, 48, "this width"), ("av1", 24, 66, "frames this narrow or flat")],
)
def test_a_size_that_an_encoder_cannot_take_is_named(tmp_path, capsys, codec, height, width, what):
    images = [image[:height, :width] for image in moving(4)]
    source = encode(tmp_path / "in.mkv", images, codec="ffv1", pix_fmt="bgr0")
    line = complaint(capsys, source, tmp_path / "out.mp4", "--codec", codec)
    assert f"{width}x{height}, 50 a second: {codec} cannot encode {what}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]
