"""Size and speed: counts against counting by hand, and what a run prints, writes and leaves out."""

import hashlib
import json
import math
import re
from functools import cache, partial

import pytest
import torch
from conftest import formula_image, formula_weights

import models
from benchmarks import ablation, kernel_times, store
from benchmarks import speed_parameters as speed
from models import kernels
from models.baselines import External
from utils.metrics import EXACT

CPU = torch.device("cpu")
MACS = speed.macs


@cache
def macs_once(name, *size):
    return MACS(models.build(name), *size)


@pytest.fixture(autouse=True)
def no_longer_than_it_takes(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.3)  # enough to time small frames a few times
    monkeypatch.setattr(speed, "macs", lambda model, *size: macs_once(model.name, *size))  # counting takes longest
    monkeypatch.setitem(speed.MATRICES, "cpu", 512)  # what the machine is capable of is of no interest here


def run(typed, out, *words):
    return typed(speed.main, speed.parser(), "--device", "cpu", "--minutes", 60, "--out", out, *words)


def test_the_share_of_a_matrix_products_pace_is_that_of_the_macs(monkeypatch):
    """The product takes a second for 2048^3 MACs, and seven frames take seven: a second for each frame's MACs."""
    monkeypatch.setattr(speed, "in_turn", lambda calls, *_: [[7.0] * 3] * (len(calls) - 1) + [[1.0] * 3])
    monkeypatch.setitem(speed.MATRICES, "cpu", 2048)
    fast = speed.ways(CPU)[-1]
    (row,) = speed.measure("IFRNet_S", (96, 64), [fast], CPU, 1.0, frames=7)
    assert row["seconds"] == 1 and row["frames"] == 7
    assert row["of_matmul"] == pytest.approx(speed.macs(models.build("IFRNet_S"), 64, 96, 7) / 7 / 2048**3)


def test_a_run_tells_and_keeps_what_it_measured(typed, tmp_path):
    done = run(typed, tmp_path, "--model_name", "IFRNet_S", "--sizes", "48x32", "64x64")
    assert done.status == 0, done.err
    assert "IFRNet_S   2,803,610 parameters, 0.10 T MACs at 1280x720" in done.out
    (path,) = tmp_path.glob("speed_parameters-IFRNet_S-48x32-64x64-CPU_*.json")
    result = store.read(path)
    chosen = speed.ways(CPU)
    assert chosen[0] == speed.EAGER and chosen[-1].mode == "fast"
    single = [row for row in result["rows"] if row["frames"] == 1]
    expected = [(size, *way) for size in ("48x32", "64x64") for way in chosen]
    assert [(row["size"], row["mode"], row["precision"], row["scale"]) for row in single] == expected
    several = [(row["size"], row["mode"], row["frames"]) for row in result["rows"] if row["frames"] > 1]
    assert several == [("48x32", "eager", 7), ("48x32", "fast", 7)]
    for row in result["rows"]:
        assert 0 < row["low"] <= row["seconds"] <= row["high"] < 10 and row["rounds"] >= speed.LEAST
        alike = [r for r in result["rows"] if (r["size"], r["frames"]) == (row["size"], row["frames"])]
        reference = next(r for r in alike if (r["mode"], r["precision"], r["scale"]) == speed.EAGER)
        assert row["ratio"] == pytest.approx(reference["seconds"] / row["seconds"])
        assert row["peak_mb"] is None or 50 < row["peak_mb"] < 50_000
        assert (row["of_matmul"] is None) == (row["precision"] != chosen[-1].precision)
        assert row["db"] is None if (row["mode"], row["precision"]) == speed.EAGER[:2] else 40 < row["db"] <= EXACT
        line = rf"^ *IFRNet_S +{row['size']} +{store.mode(row)} +{row['precision']} +{row['seconds']:.4f} "
        assert re.search(line, done.out, re.M)
    assert result["left_out"] == [] and f"wrote {path}" in done.out


def test_other_scales_are_timed_beside_scale_1_and_measured_again(typed, tmp_path, monkeypatch):
    done = run(typed, tmp_path, "--model_name", "IFRNet_S", "--sizes", "64x64", "--scales", "1", "0.5", "multi")
    assert done.status == 0, done.err
    (path,) = tmp_path.glob("*.json")
    rows = store.read(path)["rows"]
    shown = [store.mode(row) for row in rows]
    assert shown[-6:] == [
        "eager, 8x",
        "fast, 8x",
        "eager, 8x, 0.5",
        "fast, 8x, 0.5",
        "eager, 8x, multi",
        "fast, 8x, multi",
    ]
    assert [name for name in shown[:-6] if "," in name] == ["eager, 0.5", "fast, 0.5", "eager, multi", "fast, multi"]
    assert rows[0]["ratio"] == 1 and all(row["of_matmul"] is None for row in rows if row["scale"] != 1)
    assert {row["scale"]: row["macs"] for row in rows if row["frames"] == 1} == {
        scale: speed.macs(models.build("IFRNet_S"), 64, 64, 1, scale) for scale in (1, 0.5, "multi")
    }
    ratios = {store.mode(row): row["ratio"] for row in rows}
    assert ratios["eager, multi"] < ratios["eager, 0.5"]
    asked = []
    monkeypatch.setattr(speed, "measure_all", lambda args, chosen, _: asked.append(chosen) or iter([rows]))
    done = run(typed, tmp_path, "--compare", path)
    assert done.status == 0 and "IFRNet_S 64x64 eager, multi fp32" in done.out, done.err
    assert asked == [speed.ways(CPU, [0.5, "multi"])]


METHOD = """
import torch
twice, unused = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 1)
join = torch.nn.Sequential(torch.nn.Conv2d(6, 5, 1, bias=False), torch.nn.Conv2d(5, 3, 5, padding=2))

def interpolate(img0, img1{}):
    assert img0.shape[2] in SIDES
    return join(torch.cat([twice(img0), twice(img1)], 1)).sigmoid()
"""


@pytest.mark.parametrize("any_time", [True, False])
def test_a_method_from_elsewhere_is_timed_and_counted_as_it_is(any_time, typed, tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text("SIDES = 48, 256\n" + METHOD.format(", t" * any_time))
    words = ["--model_name", "IFRNet_S", path, "--sizes", "64x48"]
    done = run(typed, tmp_path, *words)
    assert done.status == 0, done.err
    (file,) = tmp_path.glob("speed_parameters-IFRNet_S-mine-64x48-CPU_*.json")
    rows = store.read(file)["rows"]
    mine = [row for row in rows if row["model"] == "mine"]
    assert [row["frames"] for row in mine] == ([1, 7] if any_time else [1])
    parameters, macs = 84 + 30 + 378, 48 * 64 * (2 * 81 + 30 + 375)
    for row in mine:
        assert (row["parameters"], row["macs"]) == (parameters, macs) and 0 < row["low"] <= row["seconds"] < 1
        assert row["ratio"] is None and row["db"] is None and row["code"] == str(path)
        assert row["code_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"mine {parameters:15d} parameters, 0.0000 T MACs at 64x48\n" in done.out
    assert [row["ratio"] is None for row in rows].count(False) == len(speed.ways(CPU)) + 2
    asked = []
    monkeypatch.setattr(speed, "measure_all", lambda args, *_: asked.extend(args.model_name) or iter([rows]))
    assert run(typed, tmp_path, "--compare", file).status == 0
    assert asked == ["IFRNet_S"], "a method has no ratio to compare"


def test_a_method_is_expected_to_take_as_long_as_one_way_of_a_network(tmp_path, monkeypatch):
    """Not as long as all of them, for which it was left out where there was time."""
    path = tmp_path / "mine.py"
    path.write_text("def interpolate(img0, img1):\n    return img0\n")
    args = speed.parser().parse_args(["--model_name", "IFRNet_S", str(path), "--sizes", "32x16", "--minutes", "0.15"])
    args.device, chosen = CPU, speed.ways(CPU)
    monkeypatch.setattr(speed, "macs_per_pixel", lambda model: 1.0 if isinstance(model, str) else 1.1)
    monkeypatch.setattr(
        speed, "measure", lambda name, *_: [{"seconds": 1.0}] * (len(chosen) if name == "IFRNet_S" else 1)
    )
    done = list(speed.measure_all(args, chosen, {str(path): External(path, CPU)}))
    # Six calls of a second each fit into nine seconds, those of each way, of which there are at least two, do not.
    assert list(map(len, done[:2])) == [len(chosen), 1] and done[2].startswith("IFRNet_S at 32x16, 8x (about ")


def test_a_method_does_not_take_the_place_of_another_of_its_name(typed, tmp_path):
    """Nor of a network of this name, which it may wrap."""
    words = ["--sizes", "32x16", "--model_name"]
    files = [folder / "IFRNet_S.py" for folder in (tmp_path / "a", tmp_path / "b")]
    for k, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(f"def interpolate(img0, img1):\n    return img{k}\n")
    for name in ("IFRNet_S", *files, "IFRNet_S", *files):
        done = run(typed, tmp_path, *words, name)
        assert done.status == 0, done.err
    results = list(map(store.read, tmp_path.glob("speed_parameters-IFRNet_S-32x16-CPU_*.json")))
    assert {result["rows"][0].get("code") for result in results} == {None, *map(str, files)} and len(results) == 3


def test_the_frames_are_a_photograph_that_moves_by_100_pixels_of_3840():
    for (width, height), moved in (((3840, 2160), 100), ((1280, 720), 33), ((16, 16), 1)):
        img0, img1 = speed.photograph_in_motion(width, height)
        assert img0.shape == img1.shape == (3, height, width) and img0.std() > 0.1
        assert torch.equal(img0[..., moved:], img1[..., :-moved]) and not torch.equal(img0, img1)


def test_a_frame_is_compared_with_that_of_float32_at_its_scale():
    half = speed.Way("eager", "bf16")
    ways = [half, speed.EAGER, half, half, speed.EAGER._replace(scale=0.5), half._replace(scale=0.5)]
    calls = [partial(torch.full, (1, 3, 4, 4), value) for value in (0.5, 0.5, 0.6, math.nan, 0.2, 0.21)]
    nobody, reference, twenty, broken, other, forty = speed.likeness(ways, calls)
    assert (nobody, reference, broken, other) == (None, None, 0, None)
    assert twenty == pytest.approx(20, abs=1e-3) and forty == pytest.approx(40, abs=1e-3)


def test_a_network_without_shipped_weights_is_compared_with_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path)
    rows = speed.measure("IFRNet_S", (32, 32), speed.ways(CPU), CPU, 0.1)
    assert all(row["db"] is None for row in rows)


def test_a_profile_finds_what_takes_the_time_and_counts_it(capfd):
    large, small = torch.rand(2, 512, 512), torch.rand(8)
    rows = kernel_times.kernel_times(lambda: (large @ large, small.exp(), small.exp()), CPU)
    calls = {row["name"]: row["calls"] for row in rows}
    assert rows[0]["name"] == "aten::bmm" and calls["aten::bmm"] == 1 and calls["aten::exp"] == 2
    assert capfd.readouterr().err == ""  # where the profiler writes messages of its own
    text = kernel_times.told(
        [{"name": "n" * 60, "calls": 2, "seconds": 0.003}, *({**r, "seconds": 1e-5} for r in rows)]
    )
    assert "n" * 40 + " (2)" in text and "n" * 41 not in text and "bmm" not in text
    assert "saw nothing" in kernel_times.told([])


def test_a_run_tells_what_the_time_of_its_last_way_goes_into(typed, tmp_path):
    words = ["--model_name", "IFRNet_S", "--sizes", "64x64", "--profile"]
    done = run(typed, tmp_path, *words)
    assert done.status == 0, done.err
    (path,) = tmp_path.glob("*.json")
    rows = store.read(path)["rows"]
    profiled = [row for row in rows if "profile" in row]
    assert [row["mode"] for row in profiled] == ["fast", "fast"]
    names, several = ({each["name"]: each["calls"] for each in row["profile"]} for row in profiled)
    if type(kernels.choose(CPU, torch.bfloat16)) is kernels.Native:
        # Kernels of native.c, which the profiler does not see by itself; those of seven frames are told per frame.
        assert names["join"] == several["join"] == 3 and names["blend"] == several["blend"] == 1
    assert re.search(r"^  of \d+\.\d\d ms: \d+% ", done.out, re.M)


def test_what_there_is_no_time_for_is_left_out_by_name(typed, tmp_path):
    words = ["--model_name", "IFRNet_S", "IFRNet_L", "--sizes", "16x16", "7680x4320", "--minutes", 0.05]
    done = run(typed, tmp_path, *words, "--precision", "fp32")
    assert done.status == 0, done.err
    line = r"left out to stay within --minutes 0.05: .*IFRNet_S at 7680x4320 \(about \d+ s\).*IFRNet_L at"
    assert re.search(line, done.out)
    result = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert {row["size"] for row in result["rows"]} == {"16x16"}
    assert [text.split(" (")[0] for text in result["left_out"][-2:]] == [
        "IFRNet_S at 7680x4320", "IFRNet_L at 7680x4320"
    ]  # fmt: skip
    assert {row["precision"] for row in result["rows"]} == {"fp32"}


def test_the_papers_seconds_stand_beside_ours_at_their_size(monkeypatch):
    monkeypatch.setattr(speed, "in_turn", lambda calls, *_: [[0.2, 0.1, 0.3] for _ in calls])
    monkeypatch.setattr(speed, "peak_memory", lambda *_: 100.0)
    monkeypatch.setattr(speed, "network", lambda name: (models.build(name), False))  # nothing is computed
    (row,) = speed.measure("IFRNet_L", (1280, 720), [speed.EAGER], CPU, 1.0)
    assert row["published"] == 0.079 and row["seconds"] == 0.2 and row["macs"] == 705_923_942_400
    assert speed.table([row]).splitlines()[1].split()[-1] == "0.079"
    (row,) = speed.measure("IFRNet_S", (448, 256), [speed.EAGER], CPU, 1.0)
    assert row["published"] is None
    monkeypatch.setitem(models.VARIANTS, "IFRNet_XS", models.VARIANTS["IFRNet_S"]._replace(side=8))
    (row,) = speed.measure("IFRNet_XS", (1280, 720), [speed.EAGER], CPU, 1.0)
    assert row["published"] is None  # a variant of one's own


def test_wrong_options_are_one_line(typed, tmp_path):
    for words, line in (
        (["--sizes", "1280"], "'1280' is not a size; give WIDTHxHEIGHT"),
        (["--sizes", "8x8"], "'8x8' is not a size"),
        (["--precision", "fp16"], "--precision fp16: not measured on this cpu; give one of fp32"),
        (["--model_name", "dis"], "'dis'"),
        (["--model_name", "none.py"], "none.py: no such file"),
        (["--model_name", "IFRNet_S", "mine.py", "--ablation"], "--ablation: times the parts of networks; .* mine.py"),
        (["--model_name", "mine.py", "--scales", "multi"], "--scales multi: has no effect on mine.py"),
        (["--model_name", "mine.py", "--precision", "fp32"], "--precision has no effect on mine.py"),
        (["--scales", "9"], "scale 9 is out of range"),
        (["--scales", "auto"], "--scales auto: stands for a number"),
        (["--scales", "0.5", "--ablation"], "--scales 0.5: --ablation measures at scale 1"),
        (["--precision", "fp32", "--ablation"], "--precision fp32: --ablation sets its own"),
        (["--tolerance", "0.1"], "--tolerance 0.1: has no effect without --compare"),
        (["--compare", "old.json", "--sizes", "64x64"], "--sizes: old.json determines what is measured"),
        (["--compare", "old.json", "--precision", "bf16"], "--precision: old.json determines what is measured"),
    ):
        done = run(typed, tmp_path, *words)
        assert done.status == 2 and re.search(line, done.err) and done.err.count("\n") == 1


def test_an_ablation_times_every_part_and_can_be_measured_again(typed, tmp_path):
    words = ["--model_name", "IFRNet_S", "--sizes", "32x32", "--ablation"]
    done = run(typed, tmp_path, *words)
    assert done.status == 0, done.err
    (path,) = tmp_path.glob("speed_parameters-ablation-IFRNet_S-32x32-CPU_*.json")
    modes = [row["mode"] for row in store.read(path)["rows"]]
    left_out = ["no kernels of its own", "convolutions of the library", "not packed", "whole frames"]
    assert modes[0] == "eager" and modes[-5:] == [*(f"fast, {part}" for part in left_out), "fast"]
    written = path.read_bytes()
    done = run(typed, tmp_path, "--compare", path, "--tolerance", 1)  # no ratio can fall by more
    assert done.status == 0 and "then and now" in done.out, done.err
    assert path.read_bytes() == written and (tmp_path / f"{path.stem}-again.json").is_file()


def test_every_way_of_an_ablation_gives_the_same_frame():
    model = formula_weights(models.build("IFRNet_S"))
    img0, img1 = formula_image(48, 64, 1), formula_image(48, 64, 2)
    calls = ablation.calls(model, CPU)
    expected = calls["eager", "fp32"](img0, img1)
    for (_, precision), call in calls.items():
        most = 1e-4 if precision == "fp32" else 0.03
        assert (call(img0, img1) - expected).abs().max() < most


def test_a_ratio_that_falls_is_named_and_absolute_times_do_not_matter():
    def rows(unit, ratio):
        row = {"model": "IFRNet_S", "size": "64x64", "frames": 1, "scale": 1}
        eager = row | {"mode": "eager", "precision": "fp32", "seconds": unit, "ratio": 1.0}
        return [eager, row | {"mode": "fast", "precision": "bf16", "seconds": unit / ratio, "ratio": ratio}]

    text, fallen = speed.compared(rows(100.0, 3.5), rows(0.1, 4.0), 0.15)
    assert fallen == [] and "-12.5%" in text
    _, fallen = speed.compared(rows(0.001, 3.3), rows(0.1, 4.0), 0.15)
    assert fallen == ["IFRNet_S 64x64 fast bf16"]
    with pytest.raises(ValueError, match="nothing to compare"):
        speed.compared(rows(1.0, 2.0), rows(1.0, 2.0)[:1], 0.15)


def test_what_fell_ends_the_run_with_status_1_and_other_files_are_refused(typed, tmp_path):
    words = ["--model_name", "IFRNet_S", "--sizes", "32x32"]
    assert run(typed, tmp_path, *words).status == 0
    (path,) = tmp_path.glob("*.json")
    result = store.read(path)
    for row in result["rows"]:
        row["ratio"] *= 1000
    store.write(path, result)
    done = run(typed, tmp_path, "--compare", path)
    assert done.status == 1 and "slower than before: IFRNet_S 32x32" in done.err
    (tmp_path / "other.json").write_text("{}")
    done = run(typed, tmp_path, "--compare", tmp_path / "other.json")
    assert done.status == 2 and "other.json" in done.err


def test_what_was_not_measured_again_is_named_and_what_cannot_be_compared_is_refused_at_once(
    typed, tmp_path, monkeypatch
):
    row = {"model": "IFRNet_S", "size": "64x64", "frames": 1, "scale": 1, "seconds": 1.0, "low": 1.0, "high": 1.0}
    row |= dict.fromkeys(("of_matmul", "db", "peak_mb", "published")) | {"parameters": 2_803_610, "macs": 10**9}
    rows = [
        row | {"mode": mode, "precision": precision, "ratio": ratio}
        for mode, precision, ratio in (("eager", "fp32", 1.0), ("fast", "bf16", 4.0), (ablation.COMPILED, "bf16", 2.0))
    ]
    asked = []
    monkeypatch.setattr(speed, "measure_all", lambda args, *_: asked.append(args.ablation) or iter([rows[:2]]))
    older = {"benchmark": store.SPEED, "device": "this", "versions": {}, "command": "", "rows": rows}
    store.write(tmp_path / "older.json", older)
    done = run(typed, tmp_path, "--compare", tmp_path / "older.json")
    assert done.status == 1 and done.err == f"not measured this time: IFRNet_S 64x64 {ablation.COMPILED} bf16\n"
    store.write(tmp_path / "older.json", older | {"rows": rows[:1] + [rows[1] | {"ratio": None}]})
    done = run(typed, tmp_path, "--compare", tmp_path / "older.json")
    assert done.status == 2 and "older.json: holds no ratio to float32" in done.err
    assert asked == ["compiled"]
