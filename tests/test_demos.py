"""The demos: their pictures against the Interpolator's frames, and one line for whatever can be wrong."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT, formula_image, formula_weights

import demo_2x
import demo_8x
import models
from utils import io


class RunsCode:
    """Its pickle, loaded without weights_only, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two frames and weights, all made by formula, and many broken files."""
    folder = tmp_path_factory.mktemp("input")
    for k in range(2):
        io.write_image(folder / f"img{k}.png", io.to_uint8(formula_image(48, 70, k)))
    io.write_image(folder / "larger.png", io.to_uint8(formula_image(48, 72, 1)))
    io.write_image(folder / "pixel.png", np.zeros((1, 1, 3), np.uint8))
    model = formula_weights(models.build("IFRNet_S"))
    torch.save(model.state_dict(), folder / "weights.pth")
    model.decoder4.convblock[0][0].weight.data[:, -1] = 0
    torch.save(model.state_dict(), folder / "half.pth")
    torch.save({"model": RunsCode(folder / "executed")}, folder / "code.pth")
    torch.save({"a.weight": torch.zeros(3)}, folder / "other.pth")
    torch.save([1, 2], folder / "list.pth")
    for name, value in (("nan", torch.nan), ("infinite", -torch.inf)):
        model.decoder1.convblock[2].bias.data[3] = value
        torch.save(model.state_dict(), folder / f"{name}.pth")
    for name in ("img1.png", "weights.pth"):
        data = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.pth").touch()
    return folder


def options(files, out, **changes):
    """The options of a demo; those that are files are names in `files`."""
    chosen = {name: files / changes.pop(name, default) for name, default in FILES.items()} | changes
    pairs = {"device": "cpu", "out": out, "scale": 1, **chosen}
    return [text for name, value in pairs.items() if value is not None for text in (f"--{name}", value)]


FILES = {"img0": "img0.png", "img1": "img1.png", "checkpoint": "weights.pth"}


def test_2x_writes_the_frame_the_overlay_and_the_animation(files, tmp_path, typed):
    done = typed(demo_2x.main, demo_2x.parser(""), *options(files, tmp_path / "out"))
    assert done.status == 0
    first, last = io.read_frames([files / "img0.png", files / "img1.png"])
    call = models.Interpolator(models.load(files / "weights.pth"), "cpu")
    middle = io.to_uint8(call(io.to_float(first), io.to_float(last))[0])
    np.testing.assert_array_equal(io.read_image(tmp_path / "out/demo_2x.png"), middle)
    mean = (first.astype(int) + last) / 2
    assert np.abs(io.read_image(tmp_path / "out/demo_2x_overlay.png") - mean).max() <= 0.5
    animation = imageio.imread(tmp_path / "out/demo_2x.gif").astype(int)
    assert animation.shape == (3, 48, 70, 3)
    assert np.abs(animation - np.stack([first, middle, last])).mean() < 8  # 256 colours a frame
    for name in ("demo_2x.png", "demo_2x_overlay.png", "demo_2x.gif"):
        assert str(tmp_path / "out" / name) in done.out
    assert "1 frame of 70x48 in" in done.out and " s on cpu" in done.out


def test_8x_writes_seven_frames_in_order_and_the_animation_of_nine(files, tmp_path, typed):
    done = typed(demo_8x.main, demo_8x.parser(""), *options(files, tmp_path))
    assert done.status == 0 and "7 frames of 70x48 in" in done.out
    first, last = io.read_frames([files / "img0.png", files / "img1.png"])
    call = models.Interpolator(models.load(files / "weights.pth"), "cpu")
    expected = io.to_uint8(call(io.to_float(first), io.to_float(last), [k / 8 for k in range(1, 8)]))
    for k, frame in enumerate(expected, start=1):
        np.testing.assert_array_equal(io.read_image(tmp_path / f"demo_8x_{k}.png"), frame)
    assert len(imageio.imread(tmp_path / "demo_8x.gif")) == 9


def test_large_motion_is_looked_for_in_smaller_frames(files, tmp_path, typed):
    wide = io.to_uint8(formula_image(128, 288, 0))
    for k in range(2):
        io.write_image(tmp_path / f"{k}.png", wide[:, 20 * k : 20 * k + 256])
    first, last = (io.to_float(io.read_image(tmp_path / f"{k}.png")) for k in range(2))
    call = models.Interpolator(models.load(files / "weights.pth"), "cpu")
    for scale, meant in (("auto", 0.5), (1, 1), ("multi", "multi"), (None, "multi")):
        chosen = options(files, tmp_path, img0=tmp_path / "0.png", img1=tmp_path / "1.png", scale=scale)
        assert typed(demo_2x.main, demo_2x.parser(""), *chosen).status == 0
        middle = io.to_uint8(call(first, last, scale=meant)[0])
        np.testing.assert_array_equal(io.read_image(tmp_path / "demo_2x.png"), middle)


def test_the_sample_pair_is_the_default(tmp_path, typed):
    done = typed(demo_8x.main, demo_8x.parser(""), "--model_name", "average", "--device", "cpu", "--out", tmp_path)
    assert done.status == 0 and "7 frames of 448x256" in done.out
    img0, img1 = (io.read_image(ROOT / f"figures/img{k}.png").astype(float) for k in range(2))
    quarter = io.read_image(tmp_path / "demo_8x_2.png")
    assert np.abs(quarter - (0.75 * img0 + 0.25 * img1)).max() <= 0.51


def test_hyphens_are_taken_for_underscores(tmp_path, typed):
    done = typed(demo_2x.main, demo_2x.parser(""), "--model-name=repeat", "--device", "cpu", "--out", tmp_path)
    assert done.status == 0
    np.testing.assert_array_equal(io.read_image(tmp_path / "demo_2x.png"), io.read_image(ROOT / "figures/img0.png"))


BAD_INPUT = {
    "missing image": ({"img0": "gone.png"}, "gone.png: no such file"),
    "folder for an image": ({"img0": "."}, "is a folder; name a file"),
    "folder for weights": ({"checkpoint": "."}, "is a folder; give a path, or IFRNet_S, or"),
    "cut image": ({"img1": "cut_img1.png"}, "cut_img1.png: the picture is cut short or damaged; copy or make it again"),
    "text for an image": ({"img0": "text.png"}, "text.png: not a PNG file, whatever its name says"),
    "other format": ({"img0": "weights.pth"}, "weights.pth: unknown picture format; .png, .jpg"),
    "frames of two sizes": ({"img1": "larger.png"}, "larger.png: 72x48, but .*img0.png is 70x48"),
    "one pixel": ({"img0": "pixel.png", "img1": "pixel.png"}, "pixel.png: 1x1; frames of 2x2 pixels or more"),
    "missing weights": ({"checkpoint": "gone.pth"}, "gone.pth: no such checkpoint; give a path, or IFRNet_S, or"),
    "cut weights": ({"checkpoint": "cut_weights.pth"}, "cut_weights.pth: not an intact checkpoint"),
    "empty weights": ({"checkpoint": "empty.pth"}, "empty.pth: not an intact checkpoint"),
    "weights that run code": ({"checkpoint": "code.pth"}, "code.pth: not an intact checkpoint of tensors only"),
    "weights of something else": ({"checkpoint": "other.pth"}, "other.pth: its 1 tensors fit none of IFRNet_S"),
    "no weights": ({"checkpoint": "list.pth"}, "list.pth: holds no weights"),
    "weights of another variant": ({"model_name": "IFRNet_L"}, "an IFRNet_S, not an IFRNet_L; change --model_name"),
    "weights that are no numbers": ({"checkpoint": "nan.pth"}, "nan.pth: .*bias holds NaN or infinity"),
    "infinite weights": ({"checkpoint": "infinite.pth"}, "infinite.pth: .*bias holds NaN or infinity"),
    "weights for a baseline": ({"model_name": "dis", "scale": None}, "dis has no weights"),
    "scale for a baseline": ({"model_name": "dis"}, "--scale has no effect on dis; leave it out, or name a network"),
    "unknown model": ({"model_name": "IFRNet_M"}, "'IFRNet_M'; .*IFRNet_S.*dis"),
    "unknown device": ({"device": "tpu9"}, "unknown device 'tpu9'; give cpu"),
    "unknown precision": ({"precision": "fp8"}, "'fp8' .*fp32.*bf16"),
    "scale out of range": ({"scale": -1}, "scale -1 is out of range; give a number from 1/16"),
    "scale that is no number": ({"scale": "half"}, "'half' is neither a number nor one of auto, multi"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_line_and_nothing_is_written(files, tmp_path, typed, case):
    changes, line = BAD_INPUT[case]
    done = typed(demo_2x.main, demo_2x.parser(""), *options(files, tmp_path / "out", **changes))
    assert done.status == 2 and done.out == ""
    assert re.fullmatch(rf"\S+: .*{line}.*\n", done.err), done.err
    assert not (tmp_path / "out").exists() and not (files / "executed").exists()


def test_an_empty_name_stands_for_no_weights(tmp_path, typed):
    done = typed(demo_2x.main, demo_2x.parser(""), "--checkpoint", "", "--out", tmp_path)
    assert done.status == 2 and "the checkpoint has no name" in done.err and not list(tmp_path.iterdir())


def test_its_own_input_is_not_written_over(files, tmp_path, typed):
    shutil.copy(files / "img0.png", tmp_path / "demo_2x.png")
    pair = ["--img0", tmp_path / "demo_2x.png", "--img1", files / "img1.png"]
    done = typed(demo_2x.main, demo_2x.parser(""), *pair, "--model_name", "average", "--out", tmp_path)
    assert done.status == 2 and "demo_2x.png: would be overwritten; give another --out" in done.err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["demo_2x.png"]


def test_a_picture_of_ones_own_is_not_paired_with_the_sample(tmp_path, typed):
    done = typed(demo_2x.main, demo_2x.parser(""), "--img0", ROOT / "figures/img0.png", "--out", tmp_path / "out")
    assert done.status == 2 and done.out == "" and not (tmp_path / "out").exists()
    assert "img0.png: --img0 and --img1 are a pair; give both" in done.err


def test_times_that_the_weights_do_not_know_are_refused(files, tmp_path, typed):
    assert typed(demo_2x.main, demo_2x.parser(""), *options(files, tmp_path / "2x", checkpoint="half.pth")).status == 0
    done = typed(demo_8x.main, demo_8x.parser(""), *options(files, tmp_path / "8x", checkpoint="half.pth"))
    assert done.status == 2 and not (tmp_path / "8x").exists()
    assert re.fullmatch(r"script.py: t = 0.125: these weights .* ignore t; use .*_GoPro.pth\n", done.err)


@pytest.mark.parametrize("demo", [demo_2x, demo_8x], ids=lambda demo: demo.__name__)
@pytest.mark.parametrize("out", ["file", "file/out", "shut/new/out"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(
    files, tmp_path, typed, monkeypatch, demo, out
):
    (tmp_path / "file").touch()
    (tmp_path / "shut").mkdir()
    access = os.access  # no folder is closed to root, as whom tests may run
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "shut" and access(path, mode))
    monkeypatch.setattr(models.IFRNet, "decode", lambda *_: pytest.fail("the folder was not checked first"))
    done = typed(demo.main, demo_2x.parser(""), *options(files, tmp_path / out))
    assert done.status == 2 and re.fullmatch(f"script.py: {tmp_path / out.split('/')[0]}: .*folder.*\n", done.err)


def test_ctrl_c_in_the_middle_of_the_work_is_one_line(files, tmp_path, typed, monkeypatch):
    monkeypatch.setattr(models.IFRNet, "decode", lambda *_: signal.raise_signal(signal.SIGINT))
    done = typed(demo_8x.main, demo_8x.parser(""), *options(files, tmp_path / "out"))
    assert done == (2, "", "script.py: interrupted\n") and not (tmp_path / "out").exists()


def test_a_script_runs_from_any_folder(files, tmp_path):
    command = [sys.executable, ROOT / "demo_2x.py", *options(files, "here")]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / "here" / "demo_2x.png").is_file()
