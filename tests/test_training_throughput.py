"""The times of training: what a run prints and writes, and where it finds that the time goes."""

import json

import pytest
import torch

from benchmarks import kernel_times, store
from benchmarks import training_throughput as throughput
from datasets import synthetic


def test_a_run_tells_and_keeps_its_times_and_what_they_go_into(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "TEXTURES", 2)  # to be quick
    monkeypatch.setattr(throughput, "GROUP", 1)
    monkeypatch.setattr(kernel_times, "ROUNDS", 1)
    path = tmp_path / "training_throughput.json"
    words = ["--batch_size", 2, "--crop", 32, "--samples", 2, "--steps", 1, "--rounds", 1, "--no_compile"]
    words += ["--parts", "scenes", "step", "--profile", "--device", "cpu", "--out", tmp_path]
    done = typed(throughput.main, throughput.parser(), *words)
    assert done.status == 0, done.err
    result = json.loads(path.read_text())
    assert list(result["scenes"]) == ["making", "a step", "both"] and "loader" not in result
    assert result["device"] == store.device_name(torch.device("cpu"), threads=True) and result["crop"] == "32"
    assert list(result["step"]) == [name for name, added in throughput.MEASURES if "compile" not in added]
    for row in (*result["scenes"].values(), *result["step"].values()):
        assert row["s"] > 0 and abs(row["s"] * row["samples_per_s"] - 2) < 1e-6
    names = {part: {each["name"] for each in row["profile"]} for part, row in result["scenes"].items()}
    assert "aten::convolution_backward" in names["a step"] and "aten::convolution_backward" not in names["making"]
    assert "aten::grid_sampler_2d" in names["making"] and "aten::convolution_backward" in names["both"]
    # The network has 36 convolutions; its encoder, of 8, runs on both inputs at once, and once more on the target.
    step = result["step"]["eager float32, contiguous"]["profile"]
    calls = {each["name"]: each["calls"] for each in step}
    assert calls["aten::convolution_backward"] == 36 + 6  # the loss compares features of three levels only
    assert done.out.count("\n  of ") == 6 and f"wrote {path}" in done.out


def test_what_is_read_packed_costs_less_than_as_published_and_no_step_waits_for_nothing(typed, tmp_path):
    words = ["--batch_size", 2, "--crop", 32, "--samples", 2, "--loader_samples", 2, "--steps", 1, "--rounds", 1]
    words += ["--no_compile", "--parts", "loader", "both", "--workers", 0, "--device", "cpu", "--out", tmp_path]
    done = typed(throughput.main, throughput.parser(), *words)
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "training_throughput.json").read_text())
    published, files, rows, augmented = result["loader"].values()
    assert published["times"] == 1 and published["ms"] > rows["ms"] > 0 and files["ms"] > rows["ms"]
    for row in (published, files, rows, augmented):
        assert row["ms"] * row["samples_per_s"] == pytest.approx(1000)
        assert row["ms"] * row["times"] == pytest.approx(published["ms"])
    assert list(result["both"]) == ["PNG", "packed"] and not {"scenes", "step"} & result.keys()
    assert all(row["samples_per_s"] > 0 and 0 < row["waiting"] < 1 for row in result["both"].values())


def test_crops_that_the_triplets_do_not_hold_are_refused(typed, tmp_path):
    done = typed(throughput.main, throughput.parser(), "--crop", 272, "--device", "cpu", "--out", tmp_path)
    assert done.status == 2 and done.err == (
        "script.py: --crop 272: triplets have 256 rows; give that or less, or --parts scenes\n"
    )
