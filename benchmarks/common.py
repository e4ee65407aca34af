"""What all benchmarks share: the command line, and the way from it to a result.

A benchmark says where its data lies, which pictures make a case, and what its protocol is; `run` scores every case once
for every model, on any number of ranks, prints the table and writes results/NAME.json. An interrupted run resumes when
the same command is given again. cases.py reads the data, evaluation.py makes the scores, store.py stores them.
"""

import argparse
import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

import models
from benchmarks import store
from benchmarks.cases import Split, check_cases
from benchmarks.evaluation import METRICS, MORE_METRICS, PROTOCOLS, Contender, score_all, scorer, show
from models import Padding
from models.baselines import External, interpolator, is_network
from utils import cli, distributed, io


class Benchmark(NamedTuple):
    """name: of the file and of the published rows. folder: where its data is, under data/. looked_for: a file or folder
    in there that identifies the set, "" for the folder alone. page: where it is described and downloaded. splits:
    (folder, options) -> splits. padding, scale: see Interpolator; scales: of protocols that have another. metrics:
    those the paper gives. options: command-line options that choose cases, recorded in the result."""

    name: str
    folder: str
    looked_for: str
    page: str
    splits: Callable[[Path, argparse.Namespace], list[Split]]
    padding: Padding = Padding()
    scale: float = 1.0
    scales: dict[str, float] = {}
    metrics: tuple[str, ...] = ("psnr", "ssim")
    options: tuple[str, ...] = ()

    def scale_of(self, protocol: str) -> float:
        return self.scales.get(protocol, self.scale)


def parser(doc: str, data: str = "folder of the data set (default: its own under data/)") -> cli.Parser:
    """The options of every benchmark. data: what is said of --data."""
    options = cli.Parser(doc)
    options.add_argument("--data", type=Path, help=data)
    cli.add_model(options, several=True)
    about = "paper (default): unrounded; uint8: rounded, as RIFE does; ema: rounded, averaged with rotated frames"
    options.add_argument("--protocol", choices=PROTOCOLS, default="paper", help=about)
    about = "of flow estimation: a number, auto (by motion) or multi (several) (default: the protocol's)"
    options.add_argument("--scale", type=cli.scale, help=about)
    known = (*METRICS, *MORE_METRICS)
    options.add_argument("--metrics", nargs="+", choices=known, default=[], help="metrics besides the benchmark's own")
    options.add_argument("--lpips_weights", nargs="+", type=Path, help="files of LPIPS's backbone and linear layers")
    options.add_argument("--batch_size", type=cli.positive, default=1, help="cases at a time (default: 1)")
    options.add_argument("--workers", type=cli.whole, help="processes that read ahead (default: 1; with a GPU 8)")
    options.add_argument("--limit", type=cli.positive, help="score only the first LIMIT cases of each split")
    options.add_argument("--skip_broken", action="store_true", help="leave broken cases out and count them")
    options.add_argument("--save_frames", action="store_true", help="write every prediction beside the result, as PNG")
    about = "folder of the results (default: %(default)s)"
    options.add_argument("--out", type=Path, default=store.RESULTS, help=about)
    distributed.add_options(options)
    return options


def start(benchmark: Benchmark, options: cli.Parser) -> None:
    """What a benchmark's file ends with."""
    cli.run(partial(run, benchmark), options)


def run(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """Score every model that was asked for; ValueError or OSError for what a user can change."""
    if args.lpips_weights and "lpips" not in args.metrics:
        raise ValueError("--lpips_weights: has no effect without --metrics lpips; give both, or neither")
    root = find_data(benchmark, args.data)
    splits = [split._replace(cases=split.cases[: args.limit]) for split in benchmark.splits(root, args)]
    check_cases(root, splits, benchmark.page, args.skip_broken)
    with distributed.ranks(args) as device:
        times = sorted({t for split in splits for case in split.cases for t in case.times})
        contenders = [make_contender(benchmark, args, *each, device, times) for each in cli.asked(args)]
        about_run = settings(benchmark, args, root, splits, device)
        scorers = {name: scorer(name, args, device) for name in about_run["metrics"]}
        # All before the first is scored: a file that is already there may not be a result.
        paths = [store.place(args.out, file_stem(benchmark, args, each), about_run | each.about) for each in contenders]
        store.check_replaced(paths, about_run)
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"{twice[0]}: would hold two results; rename the file of one of the methods")
        about_command = {"skip_broken": args.skip_broken, "command": typed()}
        unfinished, results = [], {}
        for contender, path in zip(contenders, paths):
            frames = path.with_suffix("") if args.save_frames else None
            unfinished.append(store.Progress(args.out, [about_run, contender.about, frames and frames.name]))
            scores = score_all(contender, splits, args, unfinished[-1], frames, scorers)
            if distributed.is_main():
                shown = show(contender, splits, scores, path.with_suffix(""))
                measured = store.summary(benchmark.name, contender.about["model"], splits, scores)
                results[path] = about_run | about_command | contender.about | measured | {"shown": shown}
                store.write(path, results[path])
        distributed.barrier()
        if distributed.is_main():
            # Not earlier: after an interruption, the same command also finds the models that were done.
            for progress in unfinished:
                progress.remove()
            print(store.table(list(results.values())))
            for path in results:
                print(f"wrote {path}")


def typed() -> str:
    """The command without a launcher's options: the result does not depend on the number of processes."""
    launched = cli.Parser("")
    distributed.add_options(launched)
    return shlex.join(["python", sys.argv[0], *launched.parse_known_args()[1]])


# Data


def find_data(benchmark: Benchmark, folder: Path | None) -> Path:
    """The folder of the data. FileNotFoundError that says what was looked for, where, and where to get it."""
    root = folder or cli.DATA / benchmark.folder
    if not (root / benchmark.looked_for).exists():
        hint = f" ({benchmark.looked_for} is missing)" if benchmark.looked_for else ""
        raise FileNotFoundError(
            f"{root}: no {benchmark.name} here{hint}; it is described at {benchmark.page}; --data names another folder"
        )
    return root


# Models


def make_contender(
    benchmark: Benchmark,
    args: argparse.Namespace,
    name: str | None,
    checkpoint: str | None,
    device: torch.device,
    times: Sequence[float],
) -> Contender:
    """The model of a name and weights, with the protocol, its padding and its scale. ValueError for weights that cannot
    predict all of `times`: now, not hours later when the models before it are done."""
    if not is_network(name):
        call = interpolator(name, device=device)
        call.check_times(times)
        about = {"model": name, "other_scale": None, "precision": "fp32", "mode": "eager"}
        if isinstance(call, External):
            about |= store.method(call.path)
        return Contender(call, PROTOCOLS[args.protocol], about)
    scale = benchmark.scale_of(args.protocol) if args.scale is None else args.scale
    options = {"precision": args.precision, "scale": scale, "padding": benchmark.padding}
    call = interpolator(name, checkpoint, device, **options, tile="auto", mode=args.mode)
    path = models.checkpoint_path(checkpoint or call.model.name)
    try:
        call.check_times(times)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    about = {
        "model": call.model.name,
        "weights": checkpoint and store.weights_name(path),
        "checkpoint": path.name,
        "checkpoint_sha256": io.sha256(path),
        "parameters": sum(p.numel() for p in call.model.parameters()),
        "precision": call.precision,
        "mode": call.mode,
        "scale": scale,
        "other_scale": None if scale == benchmark.scale_of(args.protocol) else scale,
        "padding": benchmark.padding._asdict(),
    }
    return Contender(call, PROTOCOLS[args.protocol], about)


def settings(
    benchmark: Benchmark, args: argparse.Namespace, root: Path, splits: list[Split], device: torch.device
) -> dict:
    """Everything besides the model that scores depend on."""
    cases = [
        (split.name, case.name, case.times, [Path(os.path.relpath(path, root)).as_posix() for path in case.pictures])
        for split in splits
        for case in split.cases
    ]
    lpips: dict[str, list[str]] = {}
    for path in args.lpips_weights or ():
        lpips.setdefault(path.name, []).append(io.sha256(path))
    return {
        "benchmark": benchmark.name,
        "protocol": args.protocol,
        **PROTOCOLS[args.protocol]._asdict(),
        "metrics": list(dict.fromkeys([*benchmark.metrics, *args.metrics])),
        "lpips_weights": lpips,  # name -> hashes, as files in several folders may share a name
        "device": store.device_name(device),
        "batch_size": args.batch_size,
        "limit": args.limit,
        "options": {name: getattr(args, name) for name in benchmark.options},
        "cases_sha256": hashlib.sha256(repr(cases).encode()).hexdigest(),
        "data": str(root.resolve()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__},
    }


def file_stem(benchmark: Benchmark, args: argparse.Namespace, contender: Contender) -> str:
    """The name of a result's file, which differs for other weights or options."""
    marks = [benchmark.name, contender.about["model"]]
    if weights := contender.about.get("weights"):
        marks += [weights, contender.about["checkpoint_sha256"][:8]]
    if args.protocol != "paper":
        marks.append(args.protocol)
    marks += [contender.about[name] for name in ("precision", "mode") if contender.about[name] not in ("fp32", "eager")]
    if args.scale is not None and "scale" in contender.about:
        marks.append(f"scale{args.scale}" if isinstance(args.scale, str) else f"scale{args.scale:.4}")
    if args.limit:
        marks.append(f"first{args.limit}")
    if args.skip_broken:
        marks.append("skip_broken")
    return "-".join(marks)


def write_predictions(benchmark: Benchmark, args: argparse.Namespace, pairs: dict[str, tuple[Path, Path]]) -> None:
    """Write the middle frame of each pair as a picture of its name, for benchmarks whose targets are not public."""
    with distributed.ranks(args) as device:
        for each in cli.asked(args):
            contender = make_contender(benchmark, args, *each, device, [0.5])
            folder = args.out / file_stem(benchmark, args, contender)
            for target in distributed.shard(list(pairs)):
                frames = io.read_frames(pairs[target])
                img0, img1 = io.to_float(frames, device)[:, None]
                prediction = contender.predict(img0, img1, [0.5], contender.scale(*frames))
                io.write_image(folder / target, io.to_uint8(prediction[0, 0]))
            distributed.barrier()
            distributed.say(f"wrote {len(pairs)} frames to {folder}")
