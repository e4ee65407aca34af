"""Training by epochs over a data set on disk: the options, and the path from them to `fit`, that recipes share."""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.utils.data import Dataset

import models
from models.ifrnet import DIVISOR
from utils import checkpoint, cli, distributed, io, runs
from utils.batches import Order, default_workers, on_device, read
from utils.step import AMP, OPTIMIZERS, Recipe
from utils.training import cosine, fit
from utils.validation import Validation

T = TypeVar("T")
CLIPS = "clips:"  # the prefix of --data for a folder of videos or frame folders
CLIP_OPTIONS = {"clip_stride": 1, "clip_longest": 640}
TOLERANCE = 0.1  # relative deviation from the paper's iterations x learning rate above which a run prints a note


def add_options(
    parser: argparse.ArgumentParser, *, epochs: int, batch_size: int, eval_interval: int, recipe: str
) -> None:
    """Add the options of a recipe, the script train_RECIPE.py; the other keywords are the paper's values where recipes
    differ. See `add_clip_options`, too."""
    parser.set_defaults(recipe=recipe)
    add = parser.add_argument
    add("--model_name", choices=models.VARIANTS, default="IFRNet", help="network (default: %(default)s)")
    add("--activation", choices=models.ACTIVATIONS, default="prelu", help="default: the paper's prelu")
    length = parser.add_mutually_exclusive_group()
    about = "passes through the set (default: %(default)s)"
    length.add_argument("--epochs", type=cli.positive, default=epochs, help=about)
    length.add_argument("--iterations", type=cli.positive, help="optimizer steps, in place of --epochs")
    add("--batch_size", type=cli.positive, default=batch_size, help="samples per process (default: %(default)s)")
    add("--accumulate", type=cli.positive, default=1, help="batches per optimizer step (default: %(default)s)")
    add("--lr_start", type=cli.amount, default=1e-4, help="learning rate at the start (default: %(default)s)")
    add("--lr_end", type=cli.amount, default=1e-5, help="learning rate at the end of the cosine (default: %(default)s)")
    add("--crop", type=crop, default=224, help="side of the training crops, a multiple of 16 (default: %(default)s)")
    add("--seed", type=cli.seed, default=0, help="of weights, order and augmentation (default: %(default)s)")
    add("--workers", type=cli.whole, default=default_workers(), help="worker processes per rank (default: %(default)s)")
    add("--amp", choices=AMP, default="none", help="precision of the convolutions (default: float32)")
    add("--channels_last", action="store_true", help="memory layout that is faster with --amp")
    add("--compile", action="store_true", help="torch.compile the network: minutes at the start, then faster")
    add("--ema", type=cli.decay, default=0.0, help="decay of averaged weights, such as 0.999 (default: none)")
    add("--clip_grad", type=cli.amount, default=0.0, help="largest gradient norm (default: no limit)")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="the paper's adamw (default) or muon, an experiment")
    add("--val_list", help="text file of triplets, videos or clips to validate on (default: last 1 %% of the set)")
    turns = parser.add_mutually_exclusive_group()
    about = "epochs between validations (default: %(default)s)"
    turns.add_argument("--eval_interval", type=cli.positive, default=eval_interval, help=about)
    about = "iterations between validations, in place of --eval_interval"
    turns.add_argument("--eval_iterations", type=cli.positive, help=about)
    add("--log_path", default=f"runs/{recipe}", help="folder for logs and checkpoints (default: %(default)s)")
    add("--log_every", type=cli.positive, default=50, help="iterations between lines of the log (default: %(default)s)")
    add("--save_every", type=cli.amount, default=10.0, help="minutes between checkpoints (default: %(default)s)")
    add("--max_bad_steps", type=cli.positive, default=20, help="stop after N non-finite steps in a row (%(default)s)")
    about = "resume from the newest complete checkpoint in --log_path, if any"
    add("--resume", choices=["auto"], nargs="?", const="auto", help=about)
    about = "checkpoint of this recipe to resume from, or weights to start from: any run's best.pth, or IFRNet_S"
    add("--resume_path", help=about)
    add("--resume_epoch", type=cli.whole, help="epoch of bare weights in --resume_path (default: 0)")
    distributed.add_options(parser)
    cli.add_device(parser)


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a recipe that also takes --data clips:FOLDER, see `clips_folder`."""
    stride, longest = CLIP_OPTIONS.values()
    about = "take every N-th frame of a clip (default: %(default)s)"
    parser.add_argument("--clip_stride", type=cli.positive, default=stride, help=about)
    about = "clips are halved until no side is longer, pixels (default: %(default)s)"
    parser.add_argument("--clip_longest", type=cli.positive, default=longest, help=about)


def crop(text: str) -> int:
    """The type of --crop."""
    side = cli.positive(text)
    if side % DIVISOR:
        raise argparse.ArgumentTypeError(f"{side} is not a multiple of {DIVISOR}")
    return side


def clips_folder(args: argparse.Namespace) -> str | None:
    """The folder of --data clips:FOLDER, None for any other set, for which options about clips are a ValueError."""
    if args.data.startswith(CLIPS):
        if args.data == CLIPS:
            raise ValueError(f"--data {CLIPS} names no folder; give one after the colon")
        return str(Path(args.data.removeprefix(CLIPS)).expanduser())  # no shell does so after a colon
    for name, usual in CLIP_OPTIONS.items():
        if getattr(args, name) != usual:
            raise ValueError(f"--{name} {getattr(args, name)} is for clips, which {args.data} is not; leave it out")
    return None


def split(names: Sequence[T], val: Sequence[T] | None = None) -> tuple[list[T], list[T]]:
    """(training, validation) names; the latter are `val`, or else the last 1 % of the list, at least one.

    The end of the list, not a random draw: neighbouring entries come from one video. A draw would put nearly every
    video on both sides; the end splits one at most. The test list has no part in choosing weights. ValueError where
    nothing is left to train on.
    """
    way = "give --val_list" if val is None else "give another --val_list"
    if val is None:
        val = list(names[-max(len(names) // 100, 1) :])
    held = set(val)
    train = [name for name in names if name not in held]
    if not train:
        raise ValueError(f"{len(names)} samples in the training list, all of them for validation; {way}")
    return train, val


def read_names(path: str | Path) -> list[str]:
    """The lines of a text file, blank ones left out. FileNotFoundError, or ValueError where there are none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of names")
    names = [line.strip() for line in io.read_text(path).splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: the list is empty")
    return names


def train(
    args: argparse.Namespace,
    device: torch.device,
    model: nn.Module,
    train_set: Dataset,
    val_set: Dataset,
    prepare: Callable,
    loss: Callable,
    paper: int | None,
) -> None:
    """Call `fit` as the options say.

    model: called as model(img0, img1, t) and, in training, model(img0, img1, t, imgt), which IFRNet.forward describes;
    scale is left out. Of the models.Interpolation that it returns, `imgt` is scored, flows[0], where there is any, is
    drawn and must be finite, and the rest is for the loss. On several ranks every weight must take part in every step,
    see DistributedDataParallel. train_set: indexed with (i, epoch); val_set: with i. Their `names`, where they have
    such, must be the same on all ranks. prepare: (batch of the training set, device) -> datasets.Sample, on any device.
    loss: as for `fit`. paper: iterations of the published recipe, to point out a run that departs from it.
    """
    ordered = partial(Order, len(train_set), args.batch_size, args.seed, args.accumulate)
    order = ordered()
    with runs.opened(args, order.per_epoch) as (folder, resume):
        iterations = args.iterations or horizon(args.epochs, order, resume)
        ahead = epochs_ahead(order, resume)
        config = runs.recorded(args) | {
            "iterations": iterations,
            "step_size": order.step_size,
            "epochs_ahead": ahead,
            "samples": len(train_set),
            "flow": bool(getattr(train_set, "flow", False)),
            "validation": runs.fingerprint(val_set),
        }
        names = [name for each in (train_set, val_set) for name in getattr(each, "names", ())]
        resume = runs.settled(resume, config, len(val_set), names)
        announce(args, order, iterations, ahead, paper, len(val_set), device)

        def batches(start: int):
            order = ordered(start, math.ceil(round(ahead, 6)))
            return on_device(read(train_set, order, args.workers, pin=device.type == "cuda"), prepare, device)

        validate = Validation(val_set, device, args.workers)
        if resume is None:
            averaging = validate.averaging  # all ranks take part
            distributed.say(f"to beat: the average of both frames scores {averaging:.4f} dB in this validation")
        fit(
            model,
            batches,
            loss,
            recipe_of(args, iterations, order.per_epoch),
            folder,
            device,
            validate=validate,
            pictures=validate.pictures,
            resume=resume,
            config=config,
        )
    if distributed.is_main():
        conclude(folder)


def recipe_of(args: argparse.Namespace, iterations: int, per_epoch: int) -> Recipe:
    """How the options say to train."""
    same = ("lr_start", "lr_end", "accumulate", "amp", "channels_last", "compile", "ema", "clip_grad", "optimizer")
    same += ("log_every", "save_every", "max_bad_steps")
    eval_every = args.eval_iterations or args.eval_interval * per_epoch
    return Recipe(iterations=iterations, eval_every=eval_every, **{name: getattr(args, name) for name in same})


def conclude(folder: Path) -> None:
    """Print what a finished run has left in its folder. ValueError where no weights are there to use."""
    if not (folder / checkpoint.BEST).is_file():
        raise ValueError(
            f"{folder}: no {checkpoint.BEST}, so no weights to use: no validation had a finite score, or the disk "
            f"was full; resume from {checkpoint.LATEST}"
        )
    print(f"the run is in {folder}: {checkpoint.BEST}, weights to use; {checkpoint.LATEST}, to resume from")


def horizon(epochs: int, order: Order, content: dict | None) -> int:
    """The iterations that this many epochs take. ValueError where the run to resume made steps of another size: its
    count of iterations would stand for other epochs."""
    before = runs.config_of(content).get("step_size", order.step_size)
    count = round((epochs - epochs_ahead(order, content)) * order.per_epoch)
    if before != order.step_size and content["iteration"]:
        raise ValueError(
            f"--epochs {epochs}: the run made steps of {before} samples until now, not of {order.step_size}; make "
            f"processes x --batch_size x --accumulate {before} again, or go on to that epoch with --iterations "
            f"{max(content['iteration'], count)}"
        )
    return max(1, count)


def epochs_ahead(order: Order, content: dict | None) -> float:
    """By how many epochs a run is ahead of iterations / order.per_epoch, because its epochs had fewer or more steps
    before, when steps or the set were of another size."""
    config = runs.config_of(content)
    per_epoch = max(1, config.get("samples", order.length) // config.get("step_size", order.step_size))
    if per_epoch == order.per_epoch:
        return config.get("epochs_ahead", 0.0)
    return runs.epochs_done(content, per_epoch) - content["iteration"] / order.per_epoch


def announce(
    args: argparse.Namespace,
    order: Order,
    iterations: int,
    ahead: float,
    paper: int | None,
    val: int,
    device: torch.device,
) -> None:
    """Print what this run will do, and a note where it departs from the paper's recipe."""
    ranks = f"{distributed.world_size()} x {args.batch_size}" + f" x {args.accumulate}" * (args.accumulate > 1)
    passes = max(0, iterations / order.per_epoch + ahead)  # below 0 where the run is far beyond these iterations
    distributed.say(
        f"{args.model_name} on {distributed.world_size()} {device.type}: {order.length} samples, {val} to validate on; "
        f"{iterations} iterations of {order.step_size} ({ranks}), {passes:.1f} epochs, "
        f"learning rate {args.lr_start:g} -> {args.lr_end:g}"
    )
    if paper is None:
        return
    ours, theirs = iterations * (args.lr_start + args.lr_end) / 2, paper * cosine(1e-4, 1e-5)(0.5)
    if abs(ours / theirs - 1) > TOLERANCE:
        distributed.say(
            f"note: iterations x learning rate is {ours:.3g}, the paper's {theirs:.3g} ({paper} iterations, 1e-4 -> "
            f"1e-5); quality follows it. --iterations {paper} keeps the paper's on any number of processes"
        )
