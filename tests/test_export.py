"""Exports: the frames of the network, in another runtime, at sizes and times that the export did not see."""

import runpy
import subprocess
import sys
import warnings
from functools import cache

import pytest
import torch
from conftest import ROOT, files_up_to, formula_image, formula_weights

import models
from models import export

FORMS = ("onnx", "pt2", "torchscript")
SMALL = (64, 96)


@pytest.fixture(scope="module")
def model():
    return formula_weights(models.build("IFRNet_S"))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """A function that exports in a form, once; a TorchScript file has one size, the others take any."""
    made = {}

    def make(form):
        if form == "onnx":
            for package in ("onnx", "onnxscript", "onnxruntime"):
                pytest.importorskip(package)
        if form not in made:
            made[form] = tmp_path_factory.mktemp("exports") / f"small{export.SUFFIXES[form]}"
            export.export(model, form, made[form], SMALL if form == "torchscript" else None)
        return made[form]

    return make


@pytest.fixture(scope="module")
def runner(exported):
    return cache(lambda form: export.runner(exported(form)))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("form", FORMS)
def test_an_export_gives_the_networks_frames_at_any_size_and_time(form, model, exported, runner):
    run = runner(form)
    for height, width in [SMALL] if form == "torchscript" else [SMALL, (32, 160), (272, 48)]:
        img0, img1 = formula_image(height, width, 1)[None], formula_image(height, width, 2)[None]
        frames = []
        for t in (0.5, 0.125):
            with torch.no_grad():
                expected = model(img0, img1, t).imgt
            frames.append(run(img0, img1, torch.tensor([t])))
            torch.testing.assert_close(frames[-1].detach(), expected, atol=1e-4, rtol=0)
        assert (frames[0] - frames[1]).abs().max() > 1e-3  # t is an input, not a constant of the export
    assert not list(exported(form).parent.glob(".*"))


def test_the_onnx_file_samples_bilinearly_with_borders_clamped(exported):
    path, onnx = exported("onnx"), pytest.importorskip("onnx")
    graph = onnx.load(path)
    assert [entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")] == [export.OPSET]
    samplers = [node for node in graph.graph.node if node.op_type == "GridSample"]
    assert len(samplers) == 8  # both frames at each of three levels, and at the end
    for node in samplers:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"align_corners": 1, "mode": b"linear", "padding_mode": b"border"}
    assert [entry.name for entry in graph.graph.input] == list(export.NAMES)


def test_a_difference_is_found(model, runner):
    run = runner("pt2")
    assert export.difference(model, run, SMALL) < 1e-4
    assert export.difference(model, lambda *inputs: run(*inputs) + 0.01, SMALL) == pytest.approx(0.01, abs=1e-3)
    assert export.difference(model, lambda a, b, t: run(a, b, torch.tensor([0.5])), SMALL) > 1e-3


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


def typed(*words):
    export.main(export.parser().parse_args([*map(str, words)]))


def test_it_writes_the_file_and_says_how_far_it_is_from_the_network(weights, tmp_path, capsys):
    out = tmp_path / "new" / "net.pt2"
    typed("--format", "pt2", "--checkpoint", weights, "--size", "64x32", "--out", out)
    printed = capsys.readouterr().out
    assert f"wrote {out}" in printed and "network at 64x32: " in printed and "(frames are in [0, 1])" in printed
    assert "t = 0.5 alone" not in printed
    with pytest.raises(ValueError, match="does not run at 48x32; give the --size"):
        typed("--check", out, "--checkpoint", weights, "--size", "48x32")
    words = "differs from this IFRNet_S by .*; name its weights with --model_name or --checkpoint"
    with pytest.raises(ValueError, match=words):  # the shipped ones
        typed("--check", out, "--size", "64x32")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_file_may_be_named_by_a_word(model, tmp_path):
    name, inputs = str(tmp_path / "x.pt"), export.example(32, 48)
    export.export(model, "torchscript", name, (32, 48))
    torch.testing.assert_close(export.runner(name)(*inputs), model(*inputs).imgt, atol=1e-4, rtol=0)


def test_an_export_is_checked_with_the_same_frames_whatever_pytorch_takes_unless_told(unless_told):
    expected = export.example(32, 48)
    unless_told()
    assert all(torch.equal(*both) for both in zip(export.example(32, 48), expected, strict=True))


def test_a_folder_is_refused_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_exported", None)
    with pytest.raises(ValueError, match="is a folder; give a name for the file"):
        export.export(model, "onnx", tmp_path)


def test_of_weights_that_ignore_t_it_says_so(model, tmp_path, capsys):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["decoder4.convblock.0.0.weight"][:, -1] = 0
    torch.save(state, tmp_path / "half.pth")
    words = ["--format", "torchscript", "--checkpoint", tmp_path / "half.pth", "--size", "64x32"]
    typed(*words, "--out", tmp_path / "half.pt")
    assert "t = 0.5 alone" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:'models.export' found in sys.modules")
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--checkpoint", "none.pth", "none.pth: no such checkpoint"),
        ("--out", "net.pth", "net.pth: onnx files end in .onnx"),
        ("--format", "tflite", "invalid choice: 'tflite'"),
        ("--size", "0x16", "'0x16' is not a size"),
        ("--size", "30x32", "'30x32' is not a size; give WIDTHxHEIGHT in multiples of 16"),
        ("--check", "net.pt2", "--providers: for onnxruntime, which does not run"),
        ("--check", "net.onnx --format pt2", "net.onnx: pt2 files end in .pt2"),
        ("--check", "net.onnx --out other.onnx", "other.onnx: --check writes nothing"),
        ("--checkpoint", "IFRNet_S.pth --model_name IFRNet", "holds an IFRNet_S, not an IFRNet"),
    ],
)
def test_what_is_wrong_ends_in_one_line(tmp_path, monkeypatch, capsys, option, value, words):
    value, *more = value.split()
    folder = ROOT / "checkpoints" if value == "IFRNet_S.pth" else tmp_path
    value = value if option in ("--format", "--size") else str(folder / value)
    more += ["--providers", "CPUExecutionProvider"] if option == "--check" else []
    monkeypatch.setattr(sys, "argv", ["export.py", option, value, *more])
    with pytest.raises(SystemExit) as stopped:  # as python -m models.export, without its time to start
        runpy.run_module("models.export", run_name="__main__")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error
    assert not list(tmp_path.iterdir())


ENDING = """
import argparse, atexit, os, runpy, signal, sys

class Interrupting:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def interrupted(parser):
    held = Interrupting()  # until the exception is forgotten
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(os.kill, os.getpid(), signal.SIGINT)
if sys.argv[1:] == ["interrupted"]:
    argparse.ArgumentParser.parse_args = interrupted
runpy.run_module("models.export", run_name="__main__")
"""


@pytest.mark.parametrize(
    "words, said", [(["--check", "missing.onnx"], "missing.onnx: no such file"), (["interrupted"], "interrupted")]
)
def test_an_interrupt_while_python_ends_prints_no_traceback(words, said):
    done = subprocess.run([sys.executable, "-c", ENDING, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"models.export: {said}\n")


def test_what_cannot_be_exported_is_refused(model, exported, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has one size; give --size"):
        export.export(model, "torchscript", tmp_path / "x.pt")
    with pytest.raises(ValueError, match="30x32: width and height must be multiples of 16"):
        export.export(model, "pt2", tmp_path / "x.pt2", (32, 30))
    with pytest.raises(ValueError, match="48x0: width and height must be multiples of 16"):
        export.export(model, "pt2", tmp_path / "x.pt2", (0, 48))
    with pytest.raises(ValueError, match="unknown format 'tflite'; choose one of onnx, torchscript, pt2"):
        export.export(model, "tflite", tmp_path / "x.tflite", (32, 48))
    with pytest.raises(ValueError, match=r"weights of torch.float16: .* call model.float\(\) first"):
        export.export(models.build("IFRNet_S").half(), "torchscript", tmp_path / "x.pt", (32, 48))
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="none.onnx: no such file"):
        export.runner(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no export")
    for name in ("cut.pt2", "cut.pt", "text.txt"):
        (tmp_path / name).write_text("no export")
        with pytest.raises(ValueError, match=name):
            export.runner(tmp_path / name)
    with monkeypatch.context() as during:
        for missing in ("onnxscript", "onnxruntime"):
            during.setitem(sys.modules, missing, None)
        during.setattr(torch.export, "export", None)  # it takes long: the packages are looked for before
        with pytest.raises(ValueError, match="ONNX needs the packages onnx and onnxscript"):
            export.export(model, "onnx", tmp_path / "x.onnx", (32, 32))
        with pytest.raises(ValueError, match="is checked with the package onnxruntime"):
            export.runner(tmp_path / "text.onnx")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="text.onnx: onnxruntime cannot read it"):
        export.runner(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="onnxruntime here has no NoProvider; it has .*CPU"):
        export.runner(exported("onnx"), ["NoProvider"])


def test_the_provider_that_is_always_there_can_be_named_without_a_word(exported):
    pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.runner(exported("onnx"), ["CPUExecutionProvider"])


@pytest.mark.parametrize("form", ["torchscript", "pt2"])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(form, model, tmp_path):
    with files_up_to(2**16), pytest.raises(OSError, match="small"):
        export.export(model, form, tmp_path / f"small{export.SUFFIXES[form]}", (64, 48))
    assert not list(tmp_path.iterdir())
