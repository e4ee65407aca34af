"""Labels from end to end: list, frames, teacher, files; ranks, interruptions, wrong input; how good they are."""

import json
import os
import shutil
import signal
import sys
import time
from collections import namedtuple

import cv2
import numpy as np
import pytest
import torch
from conftest import formula_weights
from PIL import Image
from processes import begin, run_ranks
from training_runs import rows

import generate_flow
import models
import train_vimeo90k
from datasets.vimeo90k import RECORD, Vimeo90K, read_list
from losses import ifrnet_loss
from models import flow as teachers
from models.flow.dis import DIS
from utils import cli, distributed, flow_files, io

SIZE, OTHER_SIZE = (64, 96), (48, 64)
NAMES = [f"00001/{number:04d}" for number in range(1, 8)]


@pytest.fixture(autouse=True)
def as_under_a_launcher(monkeypatch, one_thread):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """Seven triplets, the fourth of another size: a smooth random scene that moves by (3, -2) a frame."""
    root = tmp_path_factory.mktemp("triplets")
    rng = np.random.default_rng(0)
    for name in NAMES:
        height, width = OTHER_SIZE if name == NAMES[3] else SIZE
        scene = cv2.resize(rng.integers(0, 256, (30, 40, 3), np.uint8), (200, 150), interpolation=cv2.INTER_CUBIC)
        for k in range(3):
            top, left = 20 + 2 * k, 20 - 3 * k
            io.write_image(root / f"sequences/{name}/im{k + 1}.png", scene[top : top + height, left : left + width])
    (root / "tri_trainlist.txt").write_text("\n".join(NAMES[:5]) + "\n\n")
    (root / "tri_testlist.txt").write_text("\n".join(NAMES[5:]) + "\n")
    return root


@pytest.fixture
def data(made_once, tmp_path):
    return shutil.copytree(made_once, tmp_path / "set")


@pytest.fixture
def script(data, monkeypatch):
    """Runs generate_flow.py on the set in this process; returns the exit status."""

    def run(*options):
        making = [] if "--check" in options else ["--workers", 0, "--batch_size", 2]
        command = ["generate_flow.py", "--data", data, *making, *options]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        try:
            cli.run(generate_flow.main, generate_flow.parser())
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def command(data, *options):
    return ["generate_flow", *map(str, ("--data", data, "--batch_size", 2, "--device", "cpu", *options))]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def label(data, name, ending="flo"):
    return np.concatenate([flow_files.read_flow(data / f"flow/{name}/flow_t{end}.{ending}") for end in (0, 1)], 2)


def test_the_files_are_the_flow_from_the_middle_frame_to_both_ends(script, data, capsys):
    assert script("--teacher", "dis", "--split", "all", "--workers", 2) == 0
    opencv = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    for name in NAMES:
        first, middle, last = (
            cv2.cvtColor(cv2.imread(str(data / f"sequences/{name}/im{k}.png")), cv2.COLOR_BGR2GRAY) for k in (1, 2, 3)
        )
        if middle.shape == SIZE:  # smaller ones are padded for DIS
            expected = np.concatenate([opencv.calc(middle, first, None), opencv.calc(middle, last, None)], 2)
            np.testing.assert_array_equal(label(data, name), expected)
        # The content moves by (3, -2) from frame to frame.
        inner = np.median(label(data, name)[8:-8, 8:-8], (0, 1))
        np.testing.assert_allclose(inner, [-3, 2, 3, -2], atol=0.2)
    output = capsys.readouterr().out
    assert "7 of 7 triplets to do: about 0.6 MB of .flo" in output
    assert "0 triplets had their flow, 7 were made" in output and "0.6 MB" in output


@pytest.mark.parametrize("split", ["train", "test"])
def test_only_the_list_that_was_asked_for_is_labelled(script, data, split):
    assert script("--teacher", "dis", "--split", split) == 0
    labelled = sorted(str(path.parent.relative_to(data / "flow")) for path in data.glob("flow/*/*/flow_t1.flo"))
    assert labelled == (NAMES[:5] if split == "train" else NAMES[5:])


def test_labels_go_on_in_the_format_of_those_that_are_there(script, data):
    assert script("--teacher", "dis", "--format", "png") == 0
    assert script("--split", "all") == 0
    assert {path.suffix for path in data.glob("flow/*/*/*")} == {".png"} and len(list(data.glob("flow/*/*/*"))) == 14


def test_every_format_is_within_its_precision_and_every_data_set_reads_it(script, data):
    samples = {}
    for ending in ("flo", "png", "f16"):
        assert script("--teacher", "dis", "--format", ending) == 0
        samples[ending] = [sample.flow for sample in Vimeo90K(data, read_list(data))]
        (data / "flow").rename(data / f"flow.{ending}")
    assert not any(flow.isnan().any() for flow in samples["flo"])
    for ending, precision in (("png", 1 / 128), ("f16", 1 / 128)):  # flow below 16 pixels
        assert max((a - b).abs().max() for a, b in zip(samples["flo"], samples[ending])) <= precision


def test_png_labels_are_at_least_four_times_smaller_on_real_frames(real_data, tmp_path):
    root = tmp_path / "real"
    shutil.copytree(real_data / "sample_triplets/vimeo_00002_0007", root / "sequences/1/1")
    (root / "tri_trainlist.txt").write_text("1/1\n")
    frames = [io.to_float(io.read_image(root / f"sequences/1/1/im{k}.png"))[None] for k in (1, 2, 3)]
    flow = teachers.labels(teachers.build("dis"), *frames)[0].movedim(0, -1).numpy()
    sizes = {ending: generate_flow.write(root, "1/1", ending, flow)[0] for ending in ("flo", "png", "f16")}
    assert sizes["flo"] == 2 * (12 + 8 * 448 * 256) and 1.99 < sizes["flo"] / sizes["f16"] < 2
    assert sizes["flo"] / sizes["png"] > 4
    assert np.abs(label(root, "1/1", "png") - flow).max() <= 1 / 128


def test_training_sees_the_same_loss_with_labels_in_png(script, data):
    model, losses = formula_weights(models.build("IFRNet_S")), {}
    for ending in ("flo", "png"):
        assert script("--teacher", "dis", "--format", ending) == 0
        sample = Vimeo90K(data, read_list(data))[0]
        img0, imgt, img1, flow = (x[None] for x in (sample.img0, sample.imgt, sample.img1, sample.flow))
        losses[ending] = ifrnet_loss(model(img0, img1, 0.5, imgt), imgt, flow)
        shutil.rmtree(data / "flow")
    assert losses["flo"]["dis"] > 0
    for name in losses["flo"]:
        assert losses["png"][name].item() == pytest.approx(losses["flo"][name].item(), rel=1e-3)


def test_two_processes_write_the_files_of_one(script, data, raft_weights, tmp_path):
    # A network's rounding depends on the batch, DIS's does not.
    options = ["--teacher", "raft_small", "--weights", raft_weights]
    assert script(*options) == 0
    other = shutil.copytree(data, tmp_path / "two", ignore=shutil.ignore_patterns("flow"))
    (status, said), (of_other, others) = run_ranks(tmp_path, *[command(other, "--workers", 0, *options)] * 2)
    assert status == of_other == 0, said + others
    assert "0 triplets had their flow, 5 were made" in said
    one, two = contents(data / "flow"), contents(other / "flow")
    assert len(one) == 11 and one == two


def test_a_killed_run_goes_on_and_writes_the_files_of_an_unbroken_one(script, data, raft_weights, tmp_path, capsys):
    options = ["--teacher", "raft_small", "--weights", raft_weights, "--split", "all"]
    killed = shutil.copytree(data, tmp_path / "killed")
    process = begin(*command(killed, "--workers", 0, *options))
    deadline = time.monotonic() + 200
    while not list(killed.glob("flow/*/*/flow_t1.flo")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    finished = len(list(killed.glob("flow/*/*/flow_t1.flo")))
    assert 0 < finished < len(NAMES)
    # What a kill at a worse moment, or a bad disk, would have left.
    (killed / f"flow/{NAMES[0]}/.flow_t0.123.flo").write_bytes(b"PIEH")
    (killed / "flow" / f".{RECORD.removesuffix('.json')}.123.json").touch()
    whole = killed / f"flow/{NAMES[0]}/flow_t0.flo"
    whole.write_bytes(whole.read_bytes()[:-100])

    assert script(*options) == 0
    capsys.readouterr()
    assert script("--data", killed, *options) == 0
    assert f"{finished - 1} triplets had their flow, {len(NAMES) - finished + 1} were made" in capsys.readouterr().out
    assert contents(killed / "flow") == contents(data / "flow")


def test_whole_files_are_left_alone(script, data, capsys):
    assert script("--teacher", "dis") == 0
    times = {path: path.stat().st_mtime_ns for path in data.glob("flow/*/*/*")}
    (data / f"flow/{NAMES[2]}/flow_t1.flo").unlink()
    capsys.readouterr()
    assert script() == 0  # with the teacher that made the others
    output = capsys.readouterr().out
    assert "teacher: dis, which made the labels in" in output and "1 of 5 triplets to do" in output
    assert "4 triplets had their flow, 1 were made" in output
    changed = {path.parent.name for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert changed == {NAMES[2].split("/")[1]}


def test_labels_of_frames_that_have_another_size_by_now_are_made_again(script, data, tmp_path, capsys):
    assert script("--teacher", "dis") == 0
    for k in (1, 2, 3):
        shutil.copy(data / f"sequences/{NAMES[3]}/im{k}.png", data / f"sequences/{NAMES[0]}/im{k}.png")
    for options in ([], ["--teacher", "dis"]):
        assert script("--check", 1, "--sheet", tmp_path / "sheet.png", *options) == 2
        error = capsys.readouterr().err
        assert "0001/flow_t0.flo: 96x64, but the triplet's first frame is 64x48; make it again with" in error
    assert script("--teacher", "dis") == 0
    assert "4 triplets had their flow, 1 were made" in capsys.readouterr().out
    np.testing.assert_array_equal(label(data, NAMES[0]), label(data, NAMES[3]))


@pytest.mark.parametrize("turned_first", [True, False])
def test_labels_have_the_size_of_frames_that_exif_data_turn(script, data, capsys, turned_first):
    """PNG hold such data, too: labels are kept where frames were turned before, and made again where only now."""
    if not turned_first:
        assert script("--teacher", "dis") == 0
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by a quarter
    for k in (1, 2, 3):
        path = data / f"sequences/{NAMES[0]}/im{k}.png"
        Image.open(path).save(path, exif=exif)
    size = io.read_image(data / f"sequences/{NAMES[0]}/im1.png").shape[:2]
    assert script("--teacher", "dis") == 0
    capsys.readouterr()
    assert label(data, NAMES[0]).shape[:2] == size
    assert script("--teacher", "dis") == 0
    assert "5 triplets had their flow, 0 were made" in capsys.readouterr().out


def test_what_failed_before_its_first_label_binds_nobody(script, data):
    labels_of(teacher="raft_small")(data)
    (data / f"flow/{NAMES[0]}/flow_t0.flo").unlink()
    assert script("--teacher", "dis") == 0
    assert json.loads((data / "flow/teacher.json").read_text())["teacher"] == "dis"


def test_without_weights_dis_is_chosen_and_said(script, data, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(teachers, "LITEFLOWNET", tmp_path / "network-default.pytorch")
    assert script() == 0
    assert "teacher: dis, the only one that needs no weights" in capsys.readouterr().out
    assert json.loads((data / "flow/teacher.json").read_text())["teacher"] == "dis"


class Wild:
    """A teacher with some flow that no format can hold."""

    def estimate(self, img0, img1):
        flow = torch.ones(len(img0), 2, *img0.shape[-2:])
        flow[:, 0, 0, 0], flow[:, 1, 0, 1], flow[:, 1, 0, 2] = 600, torch.nan, -600
        return flow


def test_flow_beyond_the_format_is_marked_as_unknown_and_counted(script, data, capsys, monkeypatch):
    monkeypatch.setitem(teachers.TEACHERS, "dis", lambda weights, device: Wild())
    assert script("--teacher", "dis", "--format", "png") == 0
    assert "15 pixels had flow that is not finite or beyond the format: marked as unknown" in capsys.readouterr().out
    got = label(data, NAMES[0], "png")
    assert np.isnan(got[0, :3]).all()
    assert (got[1:] == 1).all() and (got[0, 3:] == 1).all()


def test_training_takes_its_flow_from_a_teacher_as_it_goes(data, tmp_path, monkeypatch, capsys):
    seen = []

    class Watched(DIS):
        def estimate(self, img0, img1):
            seen.append((img0, img1, flow := super().estimate(img0, img1)))
            return flow

    monkeypatch.setitem(teachers.TEACHERS, "dis", lambda weights, device: Watched())
    command = ["train_vimeo90k.py", "--data", data, "--model_name", "IFRNet_S", "--iterations", 2, "--log_every", 1]
    command += ["--batch_size", 2, "--crop", 48, "--workers", 0, "--device", "cpu", "--teacher", "dis"]
    found = {}
    for name, options in (("with", command), ("without", command[:-2])):
        options = [*options, "--log_path", tmp_path / name]
        monkeypatch.setattr(sys, "argv", [str(part) for part in options])
        cli.run(train_vimeo90k.main, train_vimeo90k.parser())
        found[name] = [float(row["dis"]) for row in rows(tmp_path / name / "IFRNet_S") if row["dis"]]
    assert found["without"] == [0, 0] and len(found["with"]) == 2 and min(found["with"]) > 0
    assert len(seen) == 2
    for img0, img1, flow in seen:
        assert img0.shape == (4, 3, 48, 48) and torch.equal(img0[:2], img0[2:]) and not torch.equal(img0, img1)
        assert flow.shape == (4, 2, 48, 48)
    # The first step's loss, from the frames that the teacher saw.
    (middle, _), (img0, img1), flow = (x.chunk(2) for x in seen[0])
    torch.manual_seed(0)
    out = models.build("IFRNet_S")(img0, img1, 0.5, middle)
    expected = ifrnet_loss(out, middle, torch.cat(flow, 1))["dis"].item()
    assert found["with"][0] == pytest.approx(expected, rel=1e-3)

    monkeypatch.setattr(sys, "argv", [*map(str, command[:-2]), "--teacher_weights", "a.pth"])
    with pytest.raises(SystemExit, match="2"):
        cli.run(train_vimeo90k.main, train_vimeo90k.parser())
    assert "--teacher_weights a.pth needs --teacher" in capsys.readouterr().err


# What can go wrong


def broken_frame(data):
    path = data / f"sequences/{NAMES[1]}/im3.png"
    path.write_bytes(path.read_bytes()[:-50])


def resized_frame(data):
    io.write_image(data / f"sequences/{NAMES[1]}/im2.png", np.zeros((20, 30, 3), np.uint8))


def labels_of(**changes):
    def make(data):
        record = {"teacher": "dis", "weights": None, "align_corners": False, "rgb": False, "format": "flo"}
        io.write_bytes(data / "flow/teacher.json", json.dumps(record | changes).encode())
        flow_files.write_flow(data / f"flow/{NAMES[0]}/flow_t0.flo", np.zeros((48, 64, 2), np.float32))

    return make


WRONG = {
    "no data set": (lambda data: shutil.rmtree(data), [], "set: no such folder"),
    "no list": (lambda data: (data / "tri_trainlist.txt").unlink(), [], "tri_trainlist.txt: no such list"),
    "empty list": (lambda data: (data / "tri_trainlist.txt").write_text("\n\n"), [], "tri_trainlist.txt: the list is"),
    "cut list": (
        lambda data: (data / "tri_testlist.txt").write_text("00001/0006\n0000"),
        ["--split", "test"],
        "line 2",
    ),
    "missing frame": (lambda data: (data / f"sequences/{NAMES[4]}/im1.png").unlink(), [], "0005/im1.png: no such file"),
    "broken frame": (broken_frame, [], "0002/im3.png: the picture is cut short"),
    "frames of two sizes": (resized_frame, [], "0002/im2.png: 30x20"),
    "a file in the folder's place": (lambda data: (data / "flow").write_text(""), [], "set/flow: File exists"),
    "labels of another teacher": (labels_of(teacher="raft_small"), [], "made with teacher = raft_small, not dis"),
    "exact flow": (labels_of(teacher="exact"), [], "made with teacher = exact, not dis"),
    "labels in another format": (labels_of(), ["--format", "png"], "made with format = flo, not png"),
    "a broken record": (
        lambda data: io.write_bytes(data / "flow/teacher.json", b"{"),
        [],
        "teacher.json: not readable",
    ),
    "a record of nothing": (
        lambda data: io.write_bytes(data / "flow/teacher.json", b"[1]"),
        [],
        "teacher.json: not readable",
    ),
    "unknown teacher": (None, ["--teacher", "no_flow"], "invalid choice: 'no_flow'"),
    "weights for a teacher without": (None, ["--weights", "a.pth"], "a.pth: dis has no weights"),
    "missing weights": (None, ["--teacher", "raft_small", "--weights", "a.pth"], "a.pth: no such checkpoint"),
    "options of another teacher": (None, ["--rgb"], "rgb: for liteflownet alone"),
    "unknown format": (None, ["--format", "exr"], "invalid choice: 'exr'"),
    "no batch": (None, ["--batch_size", "0"], "'0' is not a whole number from 1 up"),
    "less than no workers": (None, ["--workers", "-1"], "'-1' is not a whole number from 0 up"),
    "unknown split": (None, ["--split", "val"], "invalid choice: 'val'"),
    "labels without a record": (
        lambda data: (labels_of()(data), (data / "flow/teacher.json").unlink()),
        ["--format", "png"],
        "made with format = flo, not png",
    ),
    "a sheet of no check": (None, ["--sheet", "a.png"], "--sheet a.png needs --check N"),
    "nothing to check": (None, ["--check", "0"], "'0' is not a whole number from 1 up"),
    "ranks that were not started": (None, ["--world_size", "4"], "--world_size 4, but the number of processes is 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_half_written(case, script, data, capsys):
    spoil, options, message = WRONG[case]
    if spoil:
        spoil(data)
    teacher = [] if "--teacher" in options else ["--teacher", "dis"]
    assert script(*teacher, *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    for path in data.glob("flow/*/*/*"):
        assert not path.name.startswith(".")
        assert flow_files.read_flow(path).shape[:2] in (SIZE, OTHER_SIZE)


def test_two_processes_say_once_what_is_wrong(data, tmp_path):
    labels_of(teacher="exact")(data)
    (status, said), (other, others) = run_ranks(tmp_path, *[command(data, "--teacher", "dis")] * 2)
    assert status == other == 2 and others == "", said + others
    assert "made with teacher = exact, not dis" in said and said.count("\n") == 1


def test_damaged_weights_are_named(script, data, raft_weights, tmp_path, capsys):
    for length in (0, 100, 10_000, raft_weights.stat().st_size - 1):
        (tmp_path / "cut.pth").write_bytes(raft_weights.read_bytes()[:length])
        assert script("--teacher", "raft_small", "--weights", tmp_path / "cut.pth") == 2
        assert "cut.pth: not an intact checkpoint of tensors only" in capsys.readouterr().err
    assert script("--teacher", "liteflownet", "--weights", raft_weights) == 2
    assert "small.pth: not the weights of LiteFlowNet" in capsys.readouterr().err
    assert not (data / "flow").exists()


def test_labels_that_were_finished_before_something_went_wrong_are_kept(script, data, capsys):
    (data / f"sequences/{NAMES[4]}/im1.png").unlink()
    assert script("--teacher", "dis") == 2
    assert len(list(data.glob("flow/*/*/flow_t*.flo"))) == 8


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(script, data, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 200_000, 200_000))
    assert script("--teacher", "dis") == 2
    output, error = capsys.readouterr()
    assert "5 of 5 triplets to do: about 0.4 MB of .flo, 0.2 MB are free" in output
    assert "0.4 MB of flow do not fit into the 0.2 MB that are free; --format png or f16 takes less" in error
    assert not (data / "flow").exists()
    assert script("--teacher", "dis", "--format", "png") == 0


def test_a_disk_that_fills_up_is_named_and_leaves_no_half_file(script, data, capsys, monkeypatch):
    real, calls = flow_files.write_flow, []

    def full(path, flow):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device", str(path))
        real(path, flow)

    monkeypatch.setattr(flow_files, "write_flow", full)
    assert script("--teacher", "dis") == 2
    assert "flow_t" in (error := capsys.readouterr().err) and "No space left on device" in error
    monkeypatch.undo()
    for path in data.glob("flow/*/*/*"):
        flow_files.read_flow(path)


def test_ctrl_c_ends_in_one_line_and_leaves_whole_files(data, raft_weights, tmp_path):
    options = ["--teacher", "raft_small", "--weights", raft_weights, "--split", "all", "--workers", 1]
    process = begin(*command(data, *options), log=tmp_path / "said.txt")
    deadline = time.monotonic() + 200
    while not list(data.glob("flow/*/*/flow_t1.flo")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(200)
    error = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 2
    assert error.splitlines()[-1] == "generate_flow.py: interrupted" and "Traceback" not in error
    files = list(data.glob("flow/*/*/*"))
    assert files and all(flow_files.read_flow(path).shape == (*SIZE, 2) for path in files)


# How good labels are


def test_check_measures_a_teacher_against_the_flow_that_is_there(script, data, tmp_path, capsys):
    for name in NAMES[:5]:
        height, width = OTHER_SIZE if name == NAMES[3] else SIZE
        for end in (0, 1):
            truth = np.full((height, width, 2), (3, -2) if end else (-3, 2), np.float32)
            flow_files.write_flow(data / f"flow/{name}/flow_t{end}.flo", truth)
    before = contents(data)
    assert script("--check", 3, "--teacher", "dis", "--sheet", tmp_path / "sheet.png") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(rows) >= {NAMES[0], NAMES[2], NAMES[4], "mean", "2-4", "all"}
    assert rows["2-4"] == rows["all"] and float(rows["all"][0]) == 100  # all motion is sqrt(13) pixels
    assert float(rows["all"][1]) < 1 and float(rows["all"][2]) > 80
    left, warped, averaged, contradicts, leaves = (float(rows["mean"][k]) for k in (0, 2, 3, 4, 5))
    assert left < 3 and warped > averaged + 6 and contradicts < 15
    # By the exact motion, 3 columns and 2 rows leave each frame.
    expected = 100 * (1 - 93 * 62 / (96 * 64))
    assert leaves == pytest.approx(expected, abs=2)
    sheet = io.read_image(tmp_path / "sheet.png")
    assert sheet.shape == (3 * (round(224 * 64 / 96) + 4), 6 * 228, 3)
    assert contents(data) == before


def test_check_judges_the_labels_that_are_there(script, data, tmp_path, capsys):
    assert script("--check", 2, "--sheet", tmp_path / "sheet.pdf") == 2
    assert "sheet.pdf: is written as a picture; end the name in .png" in capsys.readouterr().err
    for option, value in (("--format", "png"), ("--batch_size", 3), ("--workers", 5)):
        assert script("--check", 2, option, value) == 2
        assert f"{option} {value}: has no effect on --check, which makes no labels" in capsys.readouterr().err
    assert script("--check", 2, "--sheet", tmp_path / "sheet.png") == 2
    assert "00001/0001: no labels to judge; make them, or give --teacher" in capsys.readouterr().err
    assert script("--teacher", "dis") == 0
    folder = data / f"flow/{NAMES[0]}"
    for end in (0, 1):  # good labels and, for the first triplet, ones that point elsewhere
        flow_files.write_flow(folder / f"flow_t{end}.flo", np.full((*SIZE, 2), 9, np.float32))
    capsys.readouterr()
    assert script("--check", 2, "--sheet", tmp_path / "sheet.png") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    wrong, right = ([float(value) for value in rows[name]] for name in (NAMES[0], NAMES[4]))
    assert wrong[0] > 5 * right[0] and wrong[4] > 90 and right[4] < 15


def test_a_triplet_that_stands_still_leaves_means(script, data, tmp_path, capsys):
    for k in (1, 2, 3):
        io.write_image(data / f"sequences/{NAMES[0]}/im{k}.png", np.zeros((*SIZE, 3), np.uint8))
    assert script("--check", 2, "--teacher", "dis", "--sheet", tmp_path / "sheet.png") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    still, moving, mean = (np.array(rows[name], float) for name in (NAMES[0], NAMES[4], "mean"))
    assert still[2] == still[3] == 100  # dB, as in all scores
    np.testing.assert_allclose(mean, (still + moving) / 2, atol=0.011)


def test_check_is_refused_under_several_ranks(script, data, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert script("--check", 2, "--teacher", "dis") == 2
    assert "--check runs in one process" in capsys.readouterr().err
