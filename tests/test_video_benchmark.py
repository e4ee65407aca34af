"""benchmarks/video.py: frames of a video put back, and what it measures of networks alone."""

import re
import resource
import shutil

import numpy as np
import pytest
from scoring import frame

import models
from benchmarks import video
from utils import io
from utils.video import open_source

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("scale", [None, "multi"])
def test_frames_of_a_video_are_put_back_as_interpolate_video_would(tmp_path, typed, monkeypatch, scale):
    pictures = [frame(k, 64, 96) for k in range(5)]
    for k, picture in enumerate(pictures):
        io.write_image(tmp_path / f"clips/a/{k}.png", picture)
    asked = []
    monkeypatch.setattr(video, "scale_by_motion", lambda *pair: asked.append(pair) or 0.5)
    words = ["--parts", "quality", "--data", tmp_path / "clips", "--count", 2, "--device", "cpu"]
    words += ["--scale", scale] if scale else []
    done = typed(video.main, video.parser(), *words, "--model_name", "average", "IFRNet_S")
    call = models.Interpolator(models.load("IFRNet_S"), "cpu", scale=scale or 0.5, mode="auto")
    expected = []
    for between in (lambda a, b: (a + b) / 2, lambda a, b: call(a, b)[0]):
        floats = [io.to_float(picture) for picture in pictures]
        errors = [(between(floats[i], floats[i + 2]) - floats[i + 1]).square().mean() for i in (0, 2)]
        expected.append(np.mean([-10 * np.log10(error.item()) for error in errors]))
    assert done.status == 0 and len(asked) == (0 if scale else 2)
    assert [float(value) for value in done.out.split()[-2:]] == pytest.approx(expected, abs=0.006)


def test_a_frame_that_is_put_back_exactly_leaves_a_mean(tmp_path, typed):
    for k, picture in enumerate([np.zeros((32, 32, 3), np.uint8)] * 3 + [frame(k, 32, 32) for k in range(2)]):
        io.write_image(tmp_path / f"clips/a/{k}.png", picture)
    words = ["--parts", "quality", "--data", tmp_path / "clips", "--device", "cpu", "--model_name", "repeat"]
    done = typed(video.main, video.parser(), *words)
    error = np.square(frame(0, 32, 32) / 255).mean()
    assert done.status == 0 and float(done.out.split()[-1]) == pytest.approx(50 - 5 * np.log10(error), abs=0.006)


def test_the_script_is_timed_against_its_network_and_its_memory_taken_from_its_process(tmp_path, typed, monkeypatch):
    monkeypatch.setitem(video.SIZES, "720p", (64, 96))
    words = ["--parts", "overhead", "--count", 3, "--rounds", 2, "--device", "cpu"]
    done = typed(video.main, video.parser(), *words, "--model_name", "IFRNet_S")
    line = r"2 pairs: network \d+\.\d s, script \d+\.\d s, clock (\d+\.\d+), processor (\d+\.\d+)\n"
    assert done.status == 0 and re.fullmatch(2 * line, done.out), done
    source = video.moving_clip(tmp_path / "in.mp4", 32, 64, 3)
    most = video.peak(source, tmp_path / "out.mp4", "--model_name", "average")
    assert len(list(open_source(str(tmp_path / "out.mp4")).frames())) == 5
    assert 0.1 < most <= resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def test_a_process_that_is_killed_while_its_memory_is_taken_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PEAK", "import os  # {root!r}\nos.kill(os.getpid(), 9)")
    with pytest.raises(ValueError, match="in.mp4: the process whose memory is measured was killed by signal 9; if mem"):
        video.peak(tmp_path / "in.mp4", tmp_path / "out.mp4")


def test_a_baseline_has_no_memory_and_overhead_of_its_own(typed):
    done = typed(video.main, video.parser(), "--parts", "overhead", "--device", "cpu", "--model_name", "average", "dis")
    assert done.status == 2 and done.err == (
        "script.py: dis: memory and overhead are a network's; name one, or give --parts quality\n"
    )


def test_weights_named_like_a_baseline_stand_beside_it(weights, tmp_path, typed):
    for k in range(3):
        io.write_image(tmp_path / f"clips/a/{k}.png", frame(k, 32, 32))
    path = shutil.copy(weights, tmp_path / "average.pth")
    words = ["--parts", "quality", "--data", tmp_path / "clips", "--count", 1, "--device", "cpu"]
    done = typed(video.main, video.parser(), *words, "--model_name", "average", "--checkpoint", path)
    assert done.status == 0 and re.match(rf"clip +average *{re.escape(str(path))}\n", done.out)


def test_methods_from_elsewhere_have_columns_that_can_be_read(tmp_path, typed):
    for k in range(3):
        io.write_image(tmp_path / f"clips/a/{k}.png", frame(k, 32, 32))
    paths = [tmp_path / name for name in ("a/one.py", "a/other.py", "b/other.py")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text("def interpolate(img0, img1):\n    return (img0 + img1) / 2\n")
    words = ["--parts", "quality", "--data", tmp_path / "clips", "--device", "cpu", "--model_name", "average"]
    done = typed(video.main, video.parser(), *words, *paths)
    head, clip, _ = done.out.splitlines()
    assert done.status == 0 and head.split() == ["clip", "average", "one", *map(str, paths[1:])]
    ends = [[match.end() for match in re.finditer(r"\S+", line)][1:] for line in (head, clip)]
    assert ends[0] == ends[1] and len(set(clip.split()[1:])) == 1
