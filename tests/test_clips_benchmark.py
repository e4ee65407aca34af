"""Scores on your own footage: which windows are scored, their motion, the score by hand."""

import os
import sys

import numpy as np
import pytest
from scoring import frame, psnr_by_hand, result

from benchmarks import Clips, evaluation, report
from utils import io


@pytest.fixture
def footage(tmp_path, own_cache):
    """A clip that moves by 1 pixel a frame, and one that moves by 6."""
    wide = frame(7, 96, 400)
    for name, speed in (("slow", 1), ("fast", 6)):
        for number in range(12):
            io.write_image(tmp_path / "clips" / name / f"{number:02d}.png", wide[:, number * speed :][:, :160])
    return tmp_path / "clips"


def score(typed, footage, *options):
    out = footage.parent / "out"
    words = ["--data", footage, "--model_name", "average", "--workers", 0, "--device", "cpu", "--out", out]
    assert typed(Clips.main, Clips.command_line(), *words, *options).status == 0
    return out


def test_the_score_is_that_of_the_frames_between(typed, footage):
    read = [io.to_float(io.read_image(footage / "slow" / f"{n:02d}.png")).numpy() for n in (5, 6, 7)]
    out = score(typed, footage, "--clips", "slow")
    samples = result(out, "Clips_2x-average")["samples"]["all"]
    assert [sample["name"] for sample in samples] == ["slow/00000", "slow/00005"]
    assert samples[1]["psnr"] == [pytest.approx(psnr_by_hand((read[0] + read[2]) / 2, read[1]), abs=1e-4)]


def test_nine_frames_ask_for_seven(typed, footage):
    out = score(typed, footage, "--frames", 9, "--per_clip", 1)
    samples = result(out, "Clips_8x-average")["samples"]["all"]
    assert [sample["name"] for sample in samples] == ["fast/00000", "slow/00000"]
    assert all(len(sample["psnr"]) == 7 and sample["times"][0] == 1 / 8 for sample in samples)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are text here, on Linux any bytes")
def test_a_clip_may_have_a_name_that_is_no_utf_8(typed, footage):
    latin = os.fsdecode(b"caf\xe9")
    (footage / "slow").rename(footage / latin)
    out = score(typed, footage, "--per_clip", 1, "--save_frames")
    samples = result(out, "Clips_2x-average")["samples"]["all"]
    assert [sample["name"] for sample in samples] == [f"{latin}/00000", "fast/00000"]
    assert typed(report.main, report.parser(), out, "--out", out / "report").status == 0
    assert r"caf\udce9/00000" in (out / "report" / "report.html").read_text("utf-8")


def test_windows_are_told_apart_by_their_motion(typed, footage):
    """The outer frames of a window are 2 pixels apart in the slow clip, 12 in the fast one."""
    out = score(typed, footage, "--by_motion")
    samples = result(out, "Clips_2x_by_motion-average")["samples"]
    found = {split: {sample["name"].split("/")[0] for sample in inside} for split, inside in samples.items()}
    assert found == {"0 px up": {"slow"}, "8 px up": {"fast"}}


def test_scale_auto_follows_the_motion_of_every_case(typed, footage, monkeypatch):
    asked = []

    def scale_by_motion(first, last):
        asked.append(np.abs(first.astype(int) - last).mean())
        return 0.5 if len(asked) % 2 else 1.0

    monkeypatch.setattr(evaluation, "scale_by_motion", scale_by_motion)
    found = {}
    for scale in ("auto", 0.5, 1):
        out = score(typed, footage, "--model_name", "IFRNet_S", "--scale", scale)
        name = f"Clips_2x-IFRNet_S-scale{scale if scale == 'auto' else float(scale)}"
        found[scale] = [sample["psnr"] for sample in result(out, name)["samples"]["all"]]
    assert len(asked) >= 4 and found["auto"][:4] == [found[0.5][0], found[1][1], found[0.5][2], found[1][3]]
    assert result(out, "Clips_2x-IFRNet_S-scaleauto")["scale"] == "auto"


def test_motion_is_in_pixels():
    wide = frame(3, 96, 200)
    assert Clips.motion(np.stack([wide[:, :160], wide[:, 5:165]])) == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize(
    "words, wrong",
    [
        ([], "--data"),
        (["--frames", 2], "--frames 2"),
        (["--frames", 500], "no clip has 500 frames without a cut, a repeat or a leap in time; give fewer --frames"),
        (["--clips", "x"], "clip named x"),
    ],
)
def test_what_is_wrong_is_named(typed, footage, words, wrong):
    status, _, error = typed(Clips.main, Clips.command_line(), *(["--data", footage, *words] if words else []))
    assert status == 2 and wrong in error and error.count("\n") == 1


def test_of_vimeo90k_the_test_list_is_scored(typed, footage):
    vimeo = footage.parent / "vimeo"
    for name in ("slow", "fast"):
        (vimeo / "sequences" / "00001").mkdir(parents=True, exist_ok=True)
        (footage / name).rename(vimeo / "sequences" / "00001" / name)
    for part, name in (("train", "slow"), ("test", "fast")):
        (vimeo / f"sep_{part}list.txt").write_text(f"00001/{name}\n")
    samples = result(score(typed, vimeo), "Clips_2x-average")["samples"]["all"]
    assert {sample["name"].rsplit("/", 1)[0] for sample in samples} == {"sequences/00001/fast"}
