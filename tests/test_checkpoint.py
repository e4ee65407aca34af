"""Checkpoints: the newest whole one is found, a damaged or a foreign one is named, and none runs code."""

import os

import pytest
import torch

import train_gopro
from utils import checkpoint, runs


@pytest.mark.parametrize("words", [[], ["--resume"]])
def test_an_epoch_of_no_weights_is_refused_whether_or_not_a_run_is_there(tmp_path, words):
    checkpoint.save(tmp_path, dict.fromkeys(checkpoint.NEEDED, 0) | {"model": {}})
    args = train_gopro.parser().parse_args([*words, "--resume_epoch", "3"])
    with pytest.raises(ValueError, match="--resume_epoch 3 needs --resume_path"):
        runs.find_resume(args, tmp_path, 1)


def test_a_checkpoint_that_lacks_anything_of_a_run_is_none_to_resume():
    whole = dict.fromkeys(["model", "optimizer", "scaler", "iteration", "validated", "best", "seconds", "random"])
    assert checkpoint.is_training(whole) and checkpoint.is_training(whole | {"averaged": None})
    assert not any(checkpoint.is_training({k: v for k, v in whole.items() if k != name}) for name in whole)


def test_weights_alone_in_place_of_a_runs_newest_checkpoint_are_named_and_the_one_before_is_taken(tmp_path):
    content = dict.fromkeys(checkpoint.NEEDED, {}) | {"iteration": 1}
    for _ in range(2):
        checkpoint.save(tmp_path, content)
    checkpoint.write(tmp_path / "latest.pth", {"encoder.bias": torch.zeros(3)})
    found, warnings = checkpoint.newest(tmp_path)
    assert found["iteration"] == 1
    assert warnings == [f"{tmp_path / 'latest.pth'}: weights alone, not a run to resume"]


def test_the_newest_whole_checkpoint_is_found_and_a_cut_one_named(tmp_path):
    content = dict.fromkeys(checkpoint.NEEDED, {}) | {"iteration": 1}
    assert checkpoint.newest(tmp_path) == (None, [])
    checkpoint.save(tmp_path, content)
    for left in (".latest.999.pth", ".best.999.pth"):
        (tmp_path / left).write_bytes(b"left by a killed process")
    checkpoint.save(tmp_path, {**content, "iteration": 2})
    assert checkpoint.newest(tmp_path)[0]["iteration"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pth", "previous.pth"]
    latest = tmp_path / "latest.pth"
    latest.write_bytes(latest.read_bytes()[:-100])
    found, warnings = checkpoint.newest(tmp_path)
    assert found["iteration"] == 1 and len(warnings) == 1 and "latest.pth: not an intact checkpoint" in warnings[0]


def test_a_checkpoint_of_weights_that_are_not_finite_is_passed_over_and_named(tmp_path):
    content = dict.fromkeys(checkpoint.NEEDED, {}) | {"model": {"w": torch.ones(2)}, "iteration": 1}
    checkpoint.save(tmp_path, content)
    checkpoint.save(tmp_path, content | {"model": {"w": torch.tensor([1, torch.nan])}})
    found, warnings = checkpoint.newest(tmp_path)
    assert found["iteration"] == 1 and len(warnings) == 1 and "latest.pth: w holds NaN or infinity" in warnings[0]


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize("what", [b"", b"not a checkpoint", Malicious(), [1, 2]], ids=["empty", "text", "code", "list"])
def test_a_foreign_file_is_named_and_not_run(tmp_path, what):
    path = tmp_path / "x.pth"
    path.write_bytes(what) if isinstance(what, bytes) else torch.save(what, path)
    with pytest.raises(ValueError, match="x.pth: "):
        checkpoint.read(path)


def test_a_failed_write_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    content = dict.fromkeys(checkpoint.NEEDED, {}) | {"iteration": 1}
    checkpoint.save(tmp_path, content)

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path, {**content, "iteration": 2})
    assert checkpoint.newest(tmp_path)[0]["iteration"] == 1
    assert not list(tmp_path.glob(".*"))
