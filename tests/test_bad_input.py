"""Faults in data, lists and options end in one line that names them, with exit status 2 and nothing half-written.

(test_demos.py and test_io.py have those in pictures and weights.)
"""

import os
import runpy
import shutil
import signal
import struct
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from processes import begin

from utils import flow_files, io

SIZE = (48, 64)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """A folder in the layout of Vimeo90K, with flow."""
    root = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for name in ("00001/0001", "00001/0002", "00001/0003"):
        for k in (1, 2, 3):
            io.write_image(root / "set/sequences" / name / f"im{k}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
        for k in (0, 1):
            flow_files.write_flow(root / "set/flow" / name / f"flow_t{k}.flo", rng.normal(size=(*SIZE, 2)))
    (root / "set/tri_trainlist.txt").write_text("00001/0001\n00001/0002\n\n")
    (root / "set/tri_testlist.txt").write_text("00001/0003\n")
    return root


@pytest.fixture
def files(small_set, tmp_path):
    """A copy of the set, to be damaged."""
    shutil.copytree(small_set, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run_script(command, capsys):
    """Run one of the project's scripts in this process; returns its exit status and standard error."""
    script, *arguments = command.split()
    argv, status = sys.argv, 0
    sys.argv = [str(ROOT / script), *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv = argv
    return status, capsys.readouterr().err


def cut(path, keep=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def spoil_flow(files):
    path = files / "set/flow/00001/0001/flow_t1.flo"
    path.write_bytes(b"PIEH" + struct.pack("<ii", 64, 48) + bytes(100))


SCORE = "benchmarks/Vimeo90K.py --data set --model_name average"
TRAIN = (
    "train_vimeo90k.py --data set --model_name IFRNet_S --epochs 1 --batch_size 1 --crop 32 --workers 0 "
    "--log_path runs --device cpu"
)

CASES = {
    "a data set that is not there": (SCORE.replace("set", "none"), None, "none: no Vimeo90K here"),
    "an empty test list": (SCORE, lambda f: (f / "set/tri_testlist.txt").write_text("\n\n"), "tri_testlist.txt"),
    "a list with a name that is not there": (
        SCORE,
        lambda f: (f / "set/tri_testlist.txt").write_text("00009/0009\n"),
        "00009/0009",
    ),
    "a frame of the test set cut short": (
        SCORE,
        lambda f: cut(f / "set/sequences/00001/0003/im2.png"),
        "00001/0003/im2.png",
    ),
    "a training list that is not there": (TRAIN, lambda f: (f / "set/tri_trainlist.txt").unlink(), "tri_trainlist.txt"),
    "a flow file cut short": (TRAIN, spoil_flow, "flow_t1.flo"),
    "a flow file that is missing": (
        TRAIN,
        lambda f: (f / "set/flow/00001/0001/flow_t0.flo").unlink(),
        "00001/0001/flow_t0",
    ),
    "a crop larger than the frames": (TRAIN.replace("--crop 32", "--crop 256"), None, "no crop of 256x256"),
    "a crop that the network cannot take": (TRAIN.replace("--crop 32", "--crop 40"), None, "40 is not a multiple"),
    "a batch size of nothing": (TRAIN.replace("--batch_size 1", "--batch_size 0"), None, "--batch_size"),
    "a run to resume that is not there": (TRAIN + " --resume_path none.pth", None, "none.pth"),
    "a world size that the launcher did not make": (TRAIN + " --world_size 4", None, "--world_size 4"),
    "made-up scenes that stand still": ("datasets/synthetic.py --out made --speed 0", None, "--speed 0"),
    "a made-up set of no size": ("datasets/synthetic.py --out made --width 1 --height 1", None, "1x1"),
    "a made-up set in place of another": ("datasets/synthetic.py --out set", None, "set: a set is there"),
    "a made-up set in place of a file": ("datasets/synthetic.py --out set/tri_testlist.txt", None, "is a file"),
    "a folder without photographs": (
        "datasets/synthetic.py --out made --images none_here",
        lambda files: (files / "none_here").mkdir(),
        "none_here",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_it_and_nothing_is_left_half_written(case, files, capsys):
    command, spoil, named = CASES[case]
    if spoil:
        spoil(files)
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*") if path.is_file()}
    status, error = run_script(command, capsys)
    assert status == 2, error
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in error, error
    assert named in lines[0]
    after = {path: path.stat().st_mtime_ns for path in files.rglob("*") if path.is_file()}
    made = [path for path in after if path not in before]
    assert not [path for path in made if path.suffix in (".png", ".gif", ".json", ".pth")], made
    assert {path: after.get(path) for path in before} == before


def test_ctrl_c_ends_in_one_line(files):
    process = begin("datasets.synthetic", "--out", files / "made", "--train", 500, log=files / "said.txt")
    deadline = time.monotonic() + 60
    while not list(files.glob("made/sequences/*/*/im3.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    error = (files / "said.txt").read_text()
    assert process.exitcode == 2
    assert error.splitlines()[-1].endswith("interrupted") and "Traceback" not in error
    assert not (files / "made/tri_trainlist.txt").exists()  # a list would tell of a whole set
    assert not list(files.glob("made/**/.*"))
