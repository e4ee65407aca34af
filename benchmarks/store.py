"""The store of results: what an unfinished run has scored, the file of a finished one, and the table of its averages.

A file holds what it takes to reproduce its numbers and nothing else, neither date nor number of processes, so that the
same run gives the same file; on a CPU the last digits depend on the number of threads (OMP_NUM_THREADS).
"""

import hashlib
import json
import math
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import NamedTuple

import torch

from benchmarks import published
from models import VARIANTS
from utils import distributed, io

UNITS = {"psnr": "PSNR", "ssim": "SSIM", "ssim_2d": "SSIM 2-D", "ie": "IE", "lpips": "LPIPS", "warp": "warp error"}
DIGITS = {"psnr": 2, "ie": 3, "warp": 6, "parameters": 2, "macs": 3, "milliseconds": 1}  # of tables; others have 4
SPEED, THROUGHPUT = "speed_parameters", "training_throughput"  # the `benchmark` of results that are times
RESULTS = Path(__file__).resolve().parents[1] / "results"  # unless --out names another folder
HIGHER_IS_BETTER = ("psnr", "ssim", "ssim_2d")

# The form of a result, as far as it is read again: a type or several; [form], a list of such; {name: form}, these names
# and others besides; {..., str: form}, where the others have a form too.
NUMBER, TEXT = (int, float), (str, NoneType)
ROW = {"model": str, "size": str, "frames": int, "mode": str, "precision": str, "scale": (*NUMBER, str)}
ROW |= {"parameters": int, "macs": int}
TIMES = {"benchmark": str, "device": str, "rows": [ROW | {"seconds": NUMBER, "ratio": (*NUMBER, NoneType)}]}
TIMES |= {"versions": {str: str}, "command": str}
AVERAGE = {"cases": int, "left_out": int, "full": (int, NoneType), str: NUMBER}  # and the metrics
SAMPLE = {"name": str, "times": [NUMBER], "broken": TEXT, str: [NUMBER]}  # and, unless broken, the metrics
SHOWN = {"split": str, "name": str, "why": str, "t": NUMBER, "psnr": NUMBER, "prediction": str, "target": str}
SCORES = {"benchmark": str, "model": str, "protocol": str, "metrics": [str], "precision": str}
SCORES |= {"other_scale": (*NUMBER, *TEXT), "device": str, "data": str, "cases_sha256": str, "average": {str: AVERAGE}}
SCORES |= {"samples": {str: [SAMPLE]}, "shown": [SHOWN | {"flow": TEXT}], "versions": {str: str}, "command": str}
CHECKPOINT = {"checkpoint": str, "checkpoint_sha256": str, "parameters": int}  # of a network
WEIGHTS = {"lpips_weights": {str: [str]}}  # of LPIPS; older results lack them


class Score(NamedTuple):
    """values: metric -> one number per time, or one for the case. broken: why the case could not be scored, if so."""

    split: str
    name: str
    values: dict[str, list[float]]
    broken: str | None = None


class Progress:
    """What an unfinished run has scored for a model: per rank a file of JSON lines, one for each batch. The folder's
    name is a hash of all that scores depend on, a batch's mark one of its pictures: what changed is scored again."""

    def __init__(self, out: Path, identity: list):
        text = json.dumps(identity, sort_keys=True)
        self.folder = out / f".unfinished-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def read(self, mark: Callable[[int], str]) -> dict[int, list[Score]]:
        """All batches that any rank has recorded and whose marks are unchanged; the same on every rank."""
        mine = {}
        for path in self.folder.glob("*.jsonl"):
            for line in path.read_text().splitlines():
                try:
                    batch, marked, scores = json.loads(line)
                except ValueError:
                    continue  # the line that was being written when the run was stopped
                if marked == mark(batch):
                    mine[batch] = [Score(*score) for score in scores]
        return {batch: scores for known in distributed.gather(mine) for batch, scores in known.items()}

    @contextmanager
    def writer(self) -> Iterator[Callable[[int, str, list[Score]], None]]:
        """Gives a function that records a batch, with its mark, at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{distributed.rank()}.jsonl"

        def write(batch: int, mark: str, scores: list[Score]) -> None:
            # The line break comes first: the line before may be incomplete.
            file.write("\n" + json.dumps([batch, mark, scores]))
            file.flush()

        with io.naming(path), path.open("a") as file:
            yield write

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def summary(benchmark: str, model: str, splits: list, scores: list[Score]) -> dict:
    """Averages, what was published, and every case: the part of a result that was measured."""
    averages, samples, beside = {}, {}, {}
    for split in splits:
        times = {case.name: case.times for case in split.cases}
        of_split = [score for score in scores if score.split == split.name]
        whole = [score for score in of_split if not score.broken]
        values = {
            name: [v for score in whole for v in score.values[name]] for name in (whole[0].values if whole else ())
        }
        averages[split.name] = {name: math.fsum(v) / len(v) for name, v in values.items()}
        averages[split.name] |= {"cases": len(whole), "left_out": len(of_split) - len(whole), "full": split.full}
        samples[split.name] = [
            {"name": score.name, "times": times[score.name], "broken": score.broken, **score.values}
            for score in of_split
        ]
        known = published.SCORES.get(benchmark, {}).get(split.name, {})
        beside[split.name] = known.get(model) or known.get(model + published.RERUN)
    return {"average": averages, "published": beside, "samples": samples}


def place(out: Path, stem: str, about: dict) -> Path:
    """The file of a result: OUT/STEM.json, with a hash added if that exists and is of other cases, weights or code."""
    path = out / f"{stem}.json"
    scored = {name: about.get(name) for name in ("data", "cases_sha256", "checkpoint_sha256", "code", "code_sha256")}
    if path.exists() and any(read(path).get(name) != value for name, value in scored.items()):
        return out / f"{stem}-{hashlib.sha256(repr(scored).encode()).hexdigest()[:6]}.json"
    return path


def check_replaced(paths: list[Path], about: dict) -> None:
    """ValueError where a new result, of these settings, would overwrite one with metrics that it lacks."""
    for path in filter(Path.exists, paths):
        old = read(path)
        if lost := [name for name in old["metrics"] if name not in about["metrics"]]:
            words = " ".join(lost)
            raise ValueError(f"{path}: its {words} would be lost; add --metrics {words}, or give another --out")
        if "lpips" in old["metrics"] and lpips_hashes(old) != lpips_hashes(about):
            raise ValueError(f"{path}: its LPIPS, by other weights, would be lost; give another --out")


def lpips_hashes(about: dict) -> list[str]:
    """The hashes of LPIPS's weights, whatever files they came in: with others it is another metric."""
    return sorted(sum(about.get("lpips_weights", {}).values(), []))


def device_name(device: torch.device, threads: bool = False) -> str:
    """What a result was computed on. threads: include a CPU's number of threads, which times depend on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}" + f", {torch.get_num_threads()} threads" * threads


def method(path: Path) -> dict:
    """What a result says of a method from elsewhere, whose file this is."""
    return {"model": path.stem, "code": str(path.resolve()), "code_sha256": io.sha256(path)}


def write(path: Path, result: dict) -> None:
    io.write_bytes(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def read(path: Path) -> dict:
    """A result, of scores or of times. ValueError for a file that is not one, or that has an older form."""
    try:
        result = json.loads(io.read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: not a whole JSON file; move it away") from error
    kind = result.get("benchmark") if isinstance(result, dict) else None
    if kind == THROUGHPUT:
        return result
    form = TIMES if kind == SPEED else SCORES
    for name, more in (("checkpoint", CHECKPOINT), ("lpips_weights", WEIGHTS)):
        form = form | more if kind and name in result else form
    faults = list(misfits(result, form)) or ([] if kind == SPEED else list(unscored(result)))
    if faults:
        lacking = ", ".join(faults[:3])
        raise ValueError(f"{path}: not a result of a benchmark: no usable {lacking}; mend it or move it away")
    return result


def misfits(value: object, form: object, place: str = "") -> Iterator[str]:
    """Where a value of JSON lacks what a form asks for, such as "average.test.cases"; see SCORES."""
    kind = type(form) if isinstance(form, dict | list) else form
    if not isinstance(value, kind) or isinstance(value, bool):
        yield place or "names"
    elif kind is list:
        for k, part in enumerate(value):
            yield from misfits(part, form[0], f"{place}.{k}")
    elif kind is dict:
        forms = (dict.fromkeys(value, form[str]) if str in form else {}) | form
        forms.pop(str, None)
        for name in forms:
            yield from misfits(value.get(name, ...), forms[name], f"{place}.{name}".removeprefix("."))


def unscored(result: dict) -> Iterator[str]:
    """Where a result lacks scores that others of its parts tell of."""
    yield from (f"metrics named {name}" for name in result["metrics"] if name not in UNITS)
    for split, average in result["average"].items():
        samples, metrics = result["samples"].get(split), [name for name in result["metrics"] if name in average]
        if samples is None or any(not s.get(name) for s in samples if not s["broken"] for name in metrics):
            yield f"samples.{split}"


def table(results: list[dict]) -> str:
    """The results of one run as a table for people, published numbers beside ours."""
    first = results[0]
    names = first["metrics"]
    rows = [["model", "split", "cases", *(UNITS[name] for name in names), "published"]]
    notes = set()
    for result in results:
        for split, average in result["average"].items():
            cases = f"{average['cases']}" + (f" ({average['left_out']} left out)" if average["left_out"] else "")
            beside = result["published"][split] or {}
            if beside and first["protocol"] != "paper":
                notes.add("published numbers are by the paper's protocol, not by this one")
            if beside and result["other_scale"]:
                notes.add(f"published numbers are not at --scale {result['other_scale']}")
            if beside and average["full"] not in (None, average["cases"]):
                notes.add(f"published numbers of {split} are of {average['full']} cases, not of {average['cases']}")
            if result["model"] + published.RERUN in published.SCORES.get(first["benchmark"], {}).get(split, {}):
                notes.add(f"published numbers of {split} are from others' re-run, at an unknown scale")
            if beside and average["full"] is None:
                notes.add(f"published numbers of {split} are of the whole set; this may not be all of it")
            rows.append(
                [called(result), split, cases]
                + [shown(name, average.get(name)) for name in names]
                + [" / ".join(shown(name, value) for name, value in beside.items()) or "-"]
            )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    precisions = " and ".join(dict.fromkeys(result["precision"] for result in results))
    head = f"{first['benchmark']}, protocol {first['protocol']}, {precisions}, {first['device']}"
    return "\n".join([head, *lines, *sorted(notes)])


def weights_name(path: Path) -> str:
    """The name of weights: that of their file, after the name of the run where training wrote it."""
    folder = path.resolve().parent
    run = [folder.parent.name] if folder.name in VARIANTS else []
    return "-".join([*run, path.stem])


def called(about: dict) -> str:
    """The name in tables and messages: the model, and its weights where they are not the shipped ones."""
    return " ".join(filter(None, [about["model"], about.get("weights")]))


def mode(row: dict) -> str:
    """A row's mode as shown: "fast", "fast, 8x" for the seven frames of a pair, "fast, multi" for another scale."""
    frames, scale = row["frames"], row["scale"]
    parts = [row["mode"], *([f"{frames + 1}x"] if frames > 1 else []), *([str(scale)] if scale != 1 else [])]
    return ", ".join(parts)


def shown(metric: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.{DIGITS.get(metric, 4)}f}"
