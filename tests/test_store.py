"""Results as files and tables: names, what may stand beside published numbers, what is valid."""

import errno
import json
import math
import platform

import pytest
import torch
from conftest import files_up_to
from scoring import unscored

from benchmarks import cases, store


def rows(benchmark, model, split, count, full):
    """The table of a result of PSNR 30 on one split."""
    scores = [store.Score(split, str(k), {"psnr": [30.0]}) for k in range(count)]
    pictures = [cases.Case(score.name, None, None, ()) for score in scores]
    measured = store.summary(benchmark, model, [cases.Split(split, pictures, full=full)], scores)
    about = {"benchmark": benchmark, "model": model, "protocol": "paper", "metrics": ["psnr"], "precision": "fp32"}
    return store.table([about | {"device": "CPU", "other_scale": None} | measured])


def test_a_table_tells_whether_published_numbers_are_of_the_same_cases_and_scale():
    whole = rows("Middlebury_Other", "IFRNet", "other", 12, 12)
    assert "IFRNet  other  12     30.00  37.50 / 0.9861 / 1.946" in whole and "published numbers" not in whole
    assert "published numbers of other are of 12 cases, not of 3" in rows("Middlebury_Other", "IFRNet", "other", 3, 12)
    assert "this may not be all of it" in rows("GoPro", "IFRNet", "8x", 3, None)
    assert "of 2K are from others' re-run, at an unknown scale" in rows("Xiph", "IFRNet", "2K", 3, 3)
    assert "published numbers" not in rows("Xiph", "IFRNet_S", "2K", 3, 392)  # there is none beside it


def test_a_result_is_valid_json_and_names_the_processor_alone(tmp_path):
    with pytest.raises(ValueError):
        store.write(tmp_path / "out.json", {"psnr": math.nan})
    assert not list(tmp_path.iterdir())
    cpu = torch.device("cpu")
    assert store.device_name(cpu) == f"CPU {platform.machine()}"
    assert store.device_name(cpu, threads=True) == f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def test_a_disk_that_fills_up_is_named_and_what_was_recorded_before_is_kept(tmp_path):
    progress, score = store.Progress(tmp_path, []), store.Score("a", "1", {"psnr": [30.0]})
    with files_up_to(2**10), pytest.raises(OSError) as full, progress.writer() as record:
        record(0, "as it was", [score])
        record(1, "as it was", 99 * [score])
    assert (full.value.errno, full.value.filename) == (errno.EFBIG, str(progress.folder / "0.jsonl"))
    assert progress.read(lambda batch: "as it was") == {0: [score]}
    with pytest.raises(FileNotFoundError) as other, progress.writer():  # of a picture
        open(tmp_path / "im1.png")
    assert other.value.filename == str(tmp_path / "im1.png")


@pytest.mark.parametrize("changed", ["data", "cases_sha256", "checkpoint_sha256"])
def test_a_result_of_other_data_cases_or_weights_has_a_file_of_its_own(tmp_path, changed):
    about = {"data": "/a", "cases_sha256": "b", "checkpoint_sha256": "c"}
    path = store.place(tmp_path, "Xiph-IFRNet", about)
    store.write(path, unscored(**about))
    assert path.name == "Xiph-IFRNet.json" and store.place(tmp_path, "Xiph-IFRNet", about) == path
    other = store.place(tmp_path, "Xiph-IFRNet", about | {changed: "d"})
    assert other.name.startswith("Xiph-IFRNet-") and other.suffix == ".json"
    assert other == store.place(tmp_path, "Xiph-IFRNet", about | {changed: "d"})


@pytest.fixture
def scored():
    """A result of two cases."""
    scores = [store.Score("test", name, {"psnr": [30.0], "ssim": [0.9]}) for name in ("a", "b")]
    splits = [cases.Split("test", [cases.Case(score.name, None, None, ()) for score in scores])]
    shown = {"split": "test", "name": "a", "why": "worst", "t": 0.5, "psnr": 30.0, "prediction": "p.png"}
    shown |= {"target": "t.png", "flow": None}
    checkpoint = {"checkpoint": "a.pth", "checkpoint_sha256": "0", "parameters": 1}
    about = unscored(benchmark="Vimeo90K", metrics=["psnr", "ssim"], shown=[shown], **checkpoint)
    about |= {"lpips_weights": {"net": ["0"]}}
    return json.loads(json.dumps(about | store.summary("Vimeo90K", "IFRNet_S", splits, scores)))


@pytest.mark.parametrize(
    "place, value",
    [
        ("benchmark", None),
        ("device", 3),
        ("average.test", []),
        ("average.test.psnr", "36.6"),
        ("average.test.cases", True),
        ("metrics.0", {}),
        ("samples.test", None),
        ("samples.test.1.times.0", "half"),
        ("shown.0.t", None),
        ("shown.0.target", 1),
        ("checkpoint_sha256", None),
        ("lpips_weights.net.0", 1),
    ],
)
def test_a_result_edited_into_another_form_is_named_with_the_place(scored, tmp_path, place, value):
    path = tmp_path / "edited.json"
    store.write(path, scored)
    assert store.read(path) == scored
    *way, last = (int(name) if name.isdecimal() else name for name in place.split("."))
    at = scored
    for name in way:
        at = at[name]
    at[last] = value
    store.write(path, scored)
    with pytest.raises(ValueError) as told:
        store.read(path)
    lacks = f"no usable {place}; mend it or move it away"
    assert str(told.value) == f"{path}: not a result of a benchmark: {lacks}"


@pytest.mark.parametrize("place, edit", [
    ("metrics named lpisp", lambda scored: scored["metrics"].append("lpisp")),
    ("samples.test", lambda scored: scored["samples"].clear()),
    ("samples.test", lambda scored: scored["samples"]["test"][1].pop("ssim")),
    ("samples.test", lambda scored: scored["samples"]["test"][0]["psnr"].clear()),
])  # fmt: skip
def test_a_result_whose_parts_do_not_fit_is_named_with_the_place(scored, tmp_path, place, edit):
    edit(scored)
    store.write(tmp_path / "edited.json", scored)
    with pytest.raises(ValueError, match=f"edited.json: not a result of a benchmark: no usable {place};"):
        store.read(tmp_path / "edited.json")


def test_of_errors_lower_is_better_and_of_all_other_metrics_higher():
    assert set(store.HIGHER_IS_BETTER) == set(store.UNITS) - {"ie", "lpips", "warp"}
