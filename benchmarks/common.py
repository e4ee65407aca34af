"""What all benchmarks share: the command line, the scoring loop, the store of results.

A benchmark says where its data lies, which pictures make a case, and what its protocol is; `run` scores every case once
for every model, on any number of ranks, prints the table and writes results/NAME.json. That file holds all that is
needed to repeat the numbers and nothing else, neither time nor number of processes, so that the same run gives the
same file. A run that was stopped goes on where it was when the same command is given again.
"""

import argparse
import hashlib
import json
import math
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import models
from benchmarks import published
from models import Padding
from models.baselines import BASELINES, interpolator
from utils import cli, distributed, io, metrics

ROOT = Path(__file__).resolve().parent.parent
METRICS = {"psnr": metrics.psnr, "ssim": metrics.ssim, "ssim_2d": metrics.ssim_2d, "ie": metrics.ie}
UNITS = {"psnr": "PSNR dB", "ssim": "SSIM", "ssim_2d": "SSIM 2-D", "ie": "IE"}
DIGITS = {"psnr": 2, "ie": 3}  # of the table; the others have 4


class Case(NamedTuple):
    """Two frames and the true ones between them, at `times`: picture files. `name` is its own within a split."""

    name: str
    img0: Path
    img1: Path
    targets: tuple[Path, ...]
    times: tuple[float, ...] = (0.5,)

    @property
    def pictures(self) -> tuple[Path, ...]:
        return (self.img0, self.img1, *self.targets)


def whole(image: np.ndarray) -> np.ndarray:
    """The view of most benchmarks: pictures as they are."""
    return image


class Split(NamedTuple):
    """Cases whose average is one number of the table. view: what is done to every picture after it was read."""

    name: str
    cases: list[Case]
    view: Callable[[np.ndarray], np.ndarray] = whole


class Benchmark(NamedTuple):
    """name: of the file and of the published rows. folder: its data under data/. looked_for: a file or folder in it by
    which it is known. page: where it is described and downloaded. splits: (folder, options) -> splits. scale, padding:
    see Interpolator; scales: where a protocol of another name has another. metrics: what the paper gives."""

    name: str
    folder: str
    looked_for: str
    page: str
    splits: Callable[[Path, argparse.Namespace], list[Split]]
    padding: Padding = Padding()
    scale: float = 1.0
    scales: dict[str, float] = {}
    metrics: tuple[str, ...] = ("psnr", "ssim")


class Protocol(NamedTuple):
    """rounded: predictions are rounded to 8 bits before they are scored. turned: the mean of the prediction and of the
    one for frames turned by half a circle, turned back (test-time augmentation)."""

    rounded: bool = False
    turned: bool = False


PROTOCOLS = {
    "paper": Protocol(),
    "uint8": Protocol(rounded=True),  # RIFE and others: about 0.02 dB less at 36 dB
    "ema": Protocol(rounded=True, turned=True),  # EMA-VFI, which also runs SNU-FILM at scale 0.5
}


def parser(doc: str) -> cli.Parser:
    """The options of every benchmark."""
    options = cli.Parser(doc)
    options.add_argument("--data", type=Path, help="folder of the data set (default: its own under data/)")
    cli.add_model(options, several=True)
    options.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="how predictions are made and scored")
    options.add_argument("--scale", type=float, help="size at which flow is estimated (default: the protocol's)")
    options.add_argument("--metrics", nargs="+", choices=METRICS, default=[], help="scores beside the benchmark's own")
    options.add_argument("--batch_size", type=cli.positive, default=1, help="cases at a time (more of them on a GPU)")
    options.add_argument("--workers", type=int, help="processes that read pictures ahead (default: 1, with a GPU 8)")
    options.add_argument("--limit", type=cli.positive, help="only the first cases of each split")
    options.add_argument("--skip_broken", action="store_true", help="leave broken cases out, and say how many")
    options.add_argument("--save_frames", action="store_true", help="write every prediction beside the result, as PNG")
    options.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the results")
    distributed.add_options(options)
    return options


def start(benchmark: Benchmark, options: cli.Parser) -> None:
    """What a benchmark's file ends with."""
    cli.run(partial(run, benchmark), options)


def run(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """Score every model that was asked for; ValueError or OSError for what a user can change."""
    root = find_data(benchmark, args.data)
    splits = [split._replace(cases=split.cases[: args.limit]) for split in benchmark.splits(root, args)]
    with distributed.ranks(args) as device:
        contenders = [contender(benchmark, args, name, device) for name in _names(args)]
        run_settings = settings(benchmark, args, root, splits, device)
        identity = json.dumps([run_settings, [one.about for one in contenders]], sort_keys=True)
        run_settings["command"] = shlex.join(["python", *sys.argv])
        journal = Journal(args.out / f".unfinished-{hashlib.sha256(identity.encode()).hexdigest()[:12]}")
        results = []
        for one in contenders:
            stem = file_stem(benchmark, args, one)
            frames = args.out / stem if args.save_frames else None
            scores = score_all(one, splits, args, journal, frames, run_settings["metrics"])
            results.append(run_settings | one.about | summary(benchmark, one, splits, scores, root))
            if distributed.is_main():
                io.write_bytes(args.out / f"{stem}.json", (json.dumps(results[-1], indent=1) + "\n").encode())
        distributed.barrier()
        if distributed.is_main():
            journal.remove()
            print(table(results))
            for one in contenders:
                print(f"wrote {args.out / file_stem(benchmark, args, one)}.json")


def find_data(benchmark: Benchmark, folder: Path | None) -> Path:
    """The folder of the data. FileNotFoundError that says what was looked for, where, and where to get it."""
    root = folder or ROOT / "data" / benchmark.folder
    if not (root / benchmark.looked_for).exists():
        raise FileNotFoundError(
            f"{root}: no {benchmark.name} here ({benchmark.looked_for} is looked for); it is described at "
            f"{benchmark.page}; --data names another folder"
        )
    return root


# Models


class Contender(NamedTuple):
    """A model to score. call: see models.baselines.interpolator. about: what the result says of it."""

    call: Callable
    about: dict


def _names(args: argparse.Namespace) -> list[str | None]:
    names = list(dict.fromkeys(args.model_name))
    networks = [name for name in names if name not in BASELINES]
    if args.checkpoint and len(networks) != 1:
        raise ValueError(f"{args.checkpoint}: a checkpoint is of one network; name one with --model_name")
    return names


def contender(benchmark: Benchmark, args: argparse.Namespace, name: str | None, device: torch.device) -> Contender:
    """The model of a name, with the padding and scale of the protocol."""
    if name in BASELINES:
        return Contender(interpolator(name, device=device), {"model": name})
    scale = args.scale or benchmark.scales.get(args.protocol, benchmark.scale)
    call = interpolator(name, args.checkpoint, device, args.precision, scale, benchmark.padding)
    path = models.checkpoint_path(args.checkpoint or call.model.name)
    about = {
        "model": call.model.name,
        "checkpoint": path.name,
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in call.model.parameters()),
        "scale": scale,
        "padding": benchmark.padding._asdict(),
    }
    return Contender(call, about)


def settings(
    benchmark: Benchmark, args: argparse.Namespace, root: Path, splits: list[Split], device: torch.device
) -> dict:
    """All that a number depends on besides the model."""
    cases = [
        (split.name, case.name, case.times, [path.relative_to(root).as_posix() for path in case.pictures])
        for split in splits
        for case in split.cases
    ]
    return {
        "benchmark": benchmark.name,
        "protocol": args.protocol,
        **PROTOCOLS[args.protocol]._asdict(),
        "metrics": list(dict.fromkeys([*benchmark.metrics, *args.metrics])),
        "precision": args.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}",
        "batch_size": args.batch_size,
        "limit": args.limit,
        "skip_broken": args.skip_broken,
        "cases_sha256": hashlib.sha256(json.dumps(cases).encode()).hexdigest(),
        "data": str(root),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__},
    }


def file_stem(benchmark: Benchmark, args: argparse.Namespace, one: Contender) -> str:
    """What a result is called: results that differ in what they measure differ in their names."""
    marks = [benchmark.name, one.about["model"]]
    if args.checkpoint and "checkpoint" in one.about:
        marks += [Path(args.checkpoint).stem, one.about["checkpoint_sha256"][:8]]
    if args.protocol != "paper":
        marks.append(args.protocol)
    if args.precision != "fp32":
        marks.append(args.precision)
    if args.scale:
        marks.append(f"scale{args.scale:g}")
    if args.limit:
        marks.append(f"first{args.limit}")
    return "-".join(marks)


# Scoring


class Score(NamedTuple):
    """Of one case. values: metric -> one number a time. broken: why it could not be scored, if it could not."""

    split: str
    name: str
    values: dict[str, list[float]]
    broken: str | None = None


class Batches(Dataset):
    """Batches of cases, read. The split into batches is that of the whole list, whatever the number of ranks: what a
    case is batched with, and with it the last bit of its score, is always the same."""

    def __init__(self, splits: list[Split], size: int):
        self.cases = [(split, case) for split in splits for case in split.cases]
        self.size = size
        self.todo = list(range(-(-len(self.cases) // size)))

    def __len__(self) -> int:
        return len(self.todo)

    def members(self, batch: int) -> list[tuple[Split, Case]]:
        return self.cases[batch * self.size : (batch + 1) * self.size]

    def __getitem__(self, i: int) -> tuple[int, list[np.ndarray | str]]:
        """The number of the batch, and for each of its cases img0, img1, targets as uint8 (2 + T, H, W, 3), or what is
        wrong with it."""
        batch = self.todo[i]
        return batch, [_read(split, case) for split, case in self.members(batch)]


def _read(split: Split, case: Case) -> np.ndarray | str:
    try:
        return np.stack([split.view(frame) for frame in io.read_frames(case.pictures)])
    except (OSError, ValueError) as error:
        return str(error)


def score_all(
    one: Contender,
    splits: list[Split],
    args: argparse.Namespace,
    journal: "Journal",
    frames: Path | None,
    names: list[str],
) -> list[Score]:
    """The scores of all cases, in their order, known to every rank."""
    batches = Batches(splits, args.batch_size)
    known = journal.read(one.about["model"])
    if known and distributed.is_main():
        print(f"{one.about['model']}: {len(known)} of {len(batches)} batches were scored before; going on from there")
    batches.todo = distributed.shard([batch for batch in batches.todo if batch not in known])
    workers = args.workers if args.workers is not None else 8 if one.call.device.type == "cuda" else 1
    # Pictures come through a pipe as they are: shared memory, where tensors would come, is small in containers.
    loader = DataLoader(batches, batch_size=None, collate_fn=whole, num_workers=min(workers, len(batches)))
    bar = tqdm(loader, desc=one.about["model"], unit="batch", disable=None if distributed.is_main() else True)
    mine = {}
    with journal.writer(one.about["model"]) as write:
        for batch, stacks in bar:
            members = batches.members(batch)
            mine[batch] = score_batch(one.call, members, stacks, PROTOCOLS[args.protocol], names, frames)
            broken = next((score for score in mine[batch] if score.broken), None)
            if broken and not args.skip_broken:
                raise ValueError(f"{broken.broken} (case {broken.name}); --skip_broken leaves such cases out")
            write(batch, mine[batch])
    for others in distributed.gather(mine):
        known |= others
    return [score for batch in sorted(known) for score in known[batch]]


def score_batch(
    call: Callable,
    members: list[tuple[Split, Case]],
    stacks: list[np.ndarray | str],
    protocol: Protocol,
    names: list[str],
    frames: Path | None,
) -> list[Score]:
    """Scores of a batch; cases of one size and the same times go through the model together."""
    scores: dict[int, Score] = {}
    groups: dict[tuple, list[int]] = {}
    for i, ((split, case), stack) in enumerate(zip(members, stacks)):
        if isinstance(stack, str):
            scores[i] = Score(split.name, case.name, {}, broken=stack)
        else:
            groups.setdefault((stack.shape, case.times), []).append(i)
    for (_, times), indices in groups.items():
        stack = io.to_float(np.stack([stacks[i] for i in indices]), call.device)
        prediction, target = predict(call, stack[:, 0], stack[:, 1], times, protocol), stack[:, 2:]
        values = {
            name: torch.stack([METRICS[name](prediction[:, k], target[:, k]) for k in range(len(times))], 1).tolist()
            for name in names
        }
        for place, i in enumerate(indices):
            split, case = members[i]
            scores[i] = Score(split.name, case.name, {name: values[name][place] for name in names})
            if frames is not None:
                for t, frame in zip(times, io.to_uint8(prediction[place])):
                    io.write_image(frame_path(frames, split.name, case, t), frame)
    return [scores[i] for i in range(len(members))]


def predict(call: Callable, img0: Tensor, img1: Tensor, times: Iterable[float], protocol: Protocol) -> Tensor:
    """(B, 3, H, W) twice -> (B, T, 3, H, W), as the protocol wants it."""
    frames = call(img0, img1, times)
    if protocol.turned:
        frames = (frames + call(img0.flip(-2, -1), img1.flip(-2, -1), times).flip(-2, -1)) / 2
    return (frames * 255).round() / 255 if protocol.rounded else frames


def frame_path(folder: Path, split: str, case: Case, t: float) -> Path:
    """Where --save_frames puts a prediction."""
    several = f"_t{t:.4f}" if len(case.times) > 1 else ""
    return folder / split / f"{case.name}{several}.png"


# Results


class Journal:
    """What an unfinished run has scored: for each model and rank a file of JSON lines, one a batch."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, model: str) -> dict[int, list[Score]]:
        """All batches that any rank wrote down before, the same on every rank."""
        mine = {}
        for path in self.folder.glob(f"{model}.*.jsonl"):
            for line in path.read_text().splitlines():
                try:
                    batch, scores = json.loads(line)
                except ValueError:
                    continue  # the line that was being written when the run was stopped
                mine[batch] = [Score(*score) for score in scores]
        return {batch: scores for known in distributed.gather(mine) for batch, scores in known.items()}

    def writer(self, model: str) -> "JournalWriter":
        return JournalWriter(self.folder / f"{model}.{distributed.rank()}.jsonl")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class JournalWriter:
    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a")

    def __enter__(self) -> Callable[[int, list[Score]], None]:
        return self._write

    def _write(self, batch: int, scores: list[Score]) -> None:
        # The line break comes first: the line before may have been cut.
        self.file.write("\n" + json.dumps([batch, scores]))
        self.file.flush()

    def __exit__(self, *_) -> None:
        self.file.close()


def summary(benchmark: Benchmark, one: Contender, splits: list[Split], scores: list[Score], root: Path) -> dict:
    """Averages, what was published, and every case: the part of the result that was measured."""
    averages, samples = {}, {}
    for split in splits:
        cases = {case.name: case for case in split.cases}
        of_split = [score for score in scores if score.split == split.name]
        whole = [score for score in of_split if not score.broken]
        values = {name: [v for s in whole for v in s.values[name]] for name in (whole[0].values if whole else ())}
        averages[split.name] = {
            **{name: math.fsum(v) / len(v) for name, v in values.items()},
            "cases": len(whole),
            "left_out": len(of_split) - len(whole),
        }
        samples[split.name] = [
            {"name": s.name, "times": cases[s.name].times, "broken": s.broken, **s.values} for s in of_split
        ]
    return {
        "average": averages,
        "published": {
            split.name: published.SCORES.get(benchmark.name, {}).get(split.name, {}).get(one.about["model"])
            for split in splits
        },
        "samples": samples,
    }


def table(results: list[dict]) -> str:
    """The results of one run as people read them, the published numbers beside ours."""
    first = results[0]
    names = first["metrics"]
    rows = [["model", "split", "cases", *(UNITS[name] for name in names), "published"]]
    for result in results:
        for split, average in result["average"].items():
            cases = f"{average['cases']}" + (f" ({average['left_out']} left out)" if average["left_out"] else "")
            rows.append(
                [result["model"], split, cases]
                + [shown(name, average.get(name)) for name in names]
                + [" / ".join(shown(name, value) for name, value in (result["published"][split] or {}).items()) or "-"]
            )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    head = f"{first['benchmark']}, protocol {first['protocol']}, {first['precision']}, {first['device']}"
    notes = []
    if first["protocol"] != "paper":
        notes.append("published numbers are by the paper's protocol, not by this one")
    if first["limit"]:
        notes.append(f"only the first {first['limit']} cases of each split: published numbers are of all")
    return "\n".join([head, *lines, *notes])


def shown(metric: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.{DIGITS.get(metric, 4)}f}"
