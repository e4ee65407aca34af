"""What all benchmarks share: the command line and the scoring loop. cases.py reads the data, store.py stores results.

A benchmark says where its data lies, which pictures make a case, and what its protocol is; `run` scores every case once
for every model, on any number of ranks, prints the table and writes results/NAME.json. An interrupted run resumes when
the same command is given again.
"""

import argparse
import hashlib
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import models
from benchmarks import store
from benchmarks.cases import Batches, Case, Split, check_cases, read, whole
from benchmarks.store import Score
from models import Interpolator, Padding
from models.baselines import BASELINES, Baseline, Dis, interpolator
from models.flow.dis import DIS
from models.interpolator import PADDINGS
from models.strips import StripIFRNet
from utils import cli, distributed, io, metrics
from utils.flow_check import flow_colours
from utils.lpips import LPIPS
from utils.motion import scale_by_motion

ROOT = Path(__file__).resolve().parent.parent
METRICS = {"psnr": metrics.bounded_psnr, "ssim": metrics.ssim, "ssim_2d": metrics.ssim_2d, "ie": metrics.ie}
MORE_METRICS = ("lpips", "warp")  # one needs weights, one looks at all frames of a case at once
SHOWN = {"worst": (0, 1), "median": (0.5,)}  # ranks among a split's cases by PSNR: indices, or fractions of all
STRIP_ROWS = 64  # rows of a strip, where a frame is too large to be processed whole


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


class Protocol(NamedTuple):
    """rounded: predictions are rounded to 8 bits before they are scored. turned: each is averaged with the prediction
    for frames rotated by 180 degrees, rotated back (test-time augmentation)."""

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
    options.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the results")
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
        store.check_replaced(paths, about_run["metrics"])
        about_command = {"skip_broken": args.skip_broken, "command": typed()}
        unfinished, results = [], {}
        for contender, path in zip(contenders, paths):
            frames = path.with_suffix("") if args.save_frames else None
            unfinished.append(store.Progress(args.out, [about_run, contender.about, frames and frames.name]))
            scores = score_all(contender, splits, args, unfinished[-1], frames, scorers)
            if distributed.is_main():
                shown = show(contender, splits, scores, PROTOCOLS[args.protocol], path.with_suffix(""))
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


class Contender(NamedTuple):
    """A model to score. call: see models.baselines.interpolator. about: what results record of it."""

    call: Interpolator | Baseline
    about: dict

    def scale(self, img0: np.ndarray, img1: np.ndarray) -> float | None:
        """The scale of flow estimation between two images, if it follows their motion; None for that of `call`."""
        return scale_by_motion(img0, img1) if self.about.get("scale") == "auto" else None


def make_contender(
    benchmark: Benchmark,
    args: argparse.Namespace,
    name: str | None,
    checkpoint: str | None,
    device: torch.device,
    times: Sequence[float],
) -> Contender:
    """The model of a name and weights, with the padding and scale of the protocol. ValueError for weights that cannot
    predict all of `times`: now, not hours later when the models before it are done."""
    if name in BASELINES:
        about = {"model": name, "other_scale": None, "precision": "fp32", "mode": "eager"}
        return Contender(interpolator(name, device=device), about)
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
    return Contender(call, about)


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


# Scoring


def score_all(
    contender: Contender,
    splits: list[Split],
    args: argparse.Namespace,
    progress: store.Progress,
    frames: Path | None,
    scorers: dict[str, Callable],
) -> list[Score]:
    """The scores of all cases, in order, on every rank."""
    batches = Batches(splits, args.batch_size)
    known, name = progress.read(batches.mark), store.called(contender.about)
    if known and distributed.is_main():
        print(f"{name}: {len(known)} of {len(batches)} batches were scored before; going on from there")
    batches.todo = distributed.shard([batch for batch in batches.todo if batch not in known])
    workers = args.workers if args.workers is not None else 8 if contender.call.device.type == "cuda" else 1
    # Arrays come through a pipe; tensors would come through shared memory, of which containers have little.
    loader = DataLoader(batches, batch_size=None, collate_fn=whole, num_workers=min(workers, len(batches)))
    bar = tqdm(loader, desc=name, unit="batch", disable=None if distributed.is_main() else True)
    mine = {}
    with progress.writer() as write:
        for batch, stacks in bar:
            members, mark = batches.members(batch), batches.mark(batch)
            mine[batch] = score_batch(contender, members, stacks, PROTOCOLS[args.protocol], scorers, frames)
            broken = next((score for score in mine[batch] if score.broken), None)
            if broken and not args.skip_broken:
                raise ValueError(f"{broken.broken} (case {broken.name}); --skip_broken leaves such cases out")
            if not broken:  # a broken case may be repaired before the next run
                write(batch, mark, mine[batch])
    for others in distributed.gather(mine):
        known |= others
    scores = [score for batch in sorted(known) for score in known[batch]]
    if all(score.broken for score in scores):
        raise ValueError(f"every case is broken; the first: {scores[0].broken}")
    return scores


def score_batch(
    contender: Contender,
    members: list[tuple[Split, Case]],
    stacks: list[np.ndarray | str],
    protocol: Protocol,
    scorers: dict[str, Callable],
    frames: Path | None,
) -> list[Score]:
    """Scores of a batch; cases of the same size, times and scale go through the model together."""
    scores: dict[int, Score] = {}
    groups: dict[tuple, list[int]] = {}
    for i, ((split, case), stack) in enumerate(zip(members, stacks)):
        if isinstance(stack, str):
            scores[i] = Score(split.name, case.name, {}, broken=stack)
        else:
            groups.setdefault((stack.shape, case.times, contender.scale(*stack[:2])), []).append(i)
    for (_, times, scale), indices in groups.items():
        stack = io.to_float(np.stack([stacks[i] for i in indices]), contender.call.device)
        prediction = predict(contender.call, stack[:, 0], stack[:, 1], times, protocol, scale)
        try:
            values = {name: score(prediction, stack).tolist() for name, score in scorers.items()}
        except ValueError as error:  # such as frames that are too small for a metric
            raise ValueError(f"{members[indices[0]][1].img0}: {error}") from error
        for place, i in enumerate(indices):
            split, case = members[i]
            scores[i] = Score(split.name, case.name, {name: values[name][place] for name in scorers})
            for name, of_case in scores[i].values.items():
                if not all(map(math.isfinite, of_case)):
                    raise ValueError(
                        f"{case.img0}: {name} is not finite; check the checkpoint, or try --precision fp32"
                    )
            if frames is not None:
                for t, frame in zip(times, io.to_uint8(prediction[place])):
                    several = f"_t{t:.4f}" if len(times) > 1 else ""
                    io.write_image(frames / split.name / f"{case.name}{several}.png", frame)
    return [scores[i] for i in range(len(members))]


def predict(
    call: Callable,
    img0: Tensor,
    img1: Tensor,
    times: Iterable[float],
    protocol: Protocol,
    scale: float | None = None,
) -> Tensor:
    """(B, 3, H, W) twice -> (B, T, 3, H, W), turned and rounded by the protocol. scale: see Interpolator."""
    frames = call(img0, img1, times, scale)
    if protocol.turned:
        frames = (frames + call(img0.flip(-2, -1), img1.flip(-2, -1), times, scale).flip(-2, -1)) / 2
    return (frames * 255).round() / 255 if protocol.rounded else frames


def scorer(name: str, args: argparse.Namespace, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A metric as (prediction (B, T, 3, H, W), img0, img1 and targets (B, 2 + T, 3, H, W)) -> (B, T), or (B, 1) where
    it is one number per case. ValueError for LPIPS without its weights."""
    if name == "warp":
        return partial(temporal, DIS())
    metric = METRICS.get(name) or LPIPS(args.lpips_weights).to(device)

    def each(prediction: Tensor, stack: Tensor) -> Tensor:
        return torch.stack([metric(prediction[:, k], stack[:, 2 + k]) for k in range(prediction.shape[1])], 1)

    return each


def temporal(flow: DIS, prediction: Tensor, stack: Tensor) -> Tensor:
    """The warping error of the video of img0, the predictions and img1, along the flow between the true frames."""
    errors = []
    for predicted, (img0, img1, *targets) in zip(prediction, stack):
        true = torch.stack([img0, *targets, img1])
        forward, backward = flow.estimate(true[:-1], true[1:]), flow.estimate(true[1:], true[:-1])
        video = torch.cat([img0[None], predicted, img1[None]])
        errors.append(metrics.warping_error(video, forward, backward))
    return torch.stack(errors)[:, None]


# Pictures for the report


def show(
    contender: Contender, splits: list[Split], scores: list[Score], protocol: Protocol, folder: Path
) -> list[dict]:
    """Predict the two worst cases and the median of each split once more; write prediction, target and flow, as PNG."""
    shown = []
    for split in splits:
        cases = {case.name: case for case in split.cases}
        ranked = sorted(
            (score for score in scores if score.split == split.name and not score.broken),
            key=lambda score: min(score.values["psnr"]),
        )
        places = {(int(p * len(ranked)) if isinstance(p, float) else p): why for why, ps in SHOWN.items() for p in ps}
        for place, why in places.items():
            if place < len(ranked):
                score = ranked[place]
                shown.append({"split": split.name, "name": score.name, "why": why})
                shown[-1] |= _show_case(contender, split, cases[score.name], score, protocol, folder)
    return shown


def _show_case(
    contender: Contender, split: Split, case: Case, score: Score, protocol: Protocol, folder: Path
) -> dict[str, str | float | None]:
    at = int(np.argmin(score.values["psnr"]))
    t = case.times[at]
    stack = read(split, case)
    frames = io.to_float(stack, contender.call.device)[:, None]
    scale = contender.scale(*stack[:2])
    pictures = {"prediction": io.to_uint8(predict(contender.call, frames[0], frames[1], [t], protocol, scale)[0, 0])}
    pictures["target"] = stack[2 + at]
    flow = flow_to_first(contender.call, frames[0], frames[1], t, scale)
    if flow is not None:
        pictures["flow"] = io.to_uint8(flow_colours(flow, flow.norm(dim=1).max().item())[0])
    paths = {}
    for kind, picture in pictures.items():
        path = folder / "shown" / split.name / f"{case.name.replace('/', '_')}_{kind}.png"
        io.write_image(path, picture)
        paths[kind] = path.relative_to(folder.parent).as_posix()
    return {"t": t, "psnr": score.values["psnr"][at], "flow": None, **paths}


@torch.inference_mode()
def flow_to_first(
    call: Interpolator | Baseline, img0: Tensor, img1: Tensor, t: float, scale: float | None = None
) -> Tensor | None:
    """The flow t->0 that a model makes its frame with, (1, 2, H, W) in pixels; None for one without motion, and where
    flows of several scales are blended."""
    if isinstance(call, Dis):
        return -t * call.motion(img0, img1)
    if isinstance(call, Baseline):
        return None
    scale, *more = call.scales(*img0.shape[-2:], scale)
    if more:
        return None
    left, right, top, bottom = call.padding.amounts(*img0.shape[-2:], scale)
    padded = [F.pad(x, (left, right, top, bottom), PADDINGS[call.padding.mode]) for x in (img0, img1)]
    too_large = call.memory(padded[0].shape, scale) > call.budget()
    model = StripIFRNet(call.model, STRIP_ROWS) if too_large else call.model
    flow = model.decode(model.encode(*padded, scale), t).flows[0][:, :2]
    return flow[..., top : top + img0.shape[-2], left : left + img0.shape[-1]]


def write_predictions(benchmark: Benchmark, args: argparse.Namespace, pairs: dict[str, tuple[Path, Path]]) -> None:
    """Write the middle frame of each pair as a picture of its name, for benchmarks whose targets are not public."""
    with distributed.ranks(args) as device:
        for each in cli.asked(args):
            contender = make_contender(benchmark, args, *each, device, [0.5])
            folder = args.out / file_stem(benchmark, args, contender)
            for target in distributed.shard(list(pairs)):
                frames = io.read_frames(pairs[target])
                img0, img1 = io.to_float(frames, device)[:, None]
                prediction = predict(
                    contender.call, img0, img1, [0.5], PROTOCOLS[args.protocol], contender.scale(*frames)
                )
                io.write_image(folder / target, io.to_uint8(prediction[0, 0]))
            distributed.barrier()
            if distributed.is_main():
                print(f"wrote {len(pairs)} frames to {folder}")
