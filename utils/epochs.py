"""Training by epochs over a data set on disk: the options, and the path from them to `fit`, that recipes share."""

import argparse
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.utils.data import Dataset

import models
from models.ifrnet import DIVISOR
from models.weights import bare
from utils import checkpoint, cli, distributed, io
from utils.batches import Order, default_workers, on_device, read
from utils.training import AMP, OPTIMIZERS, Recipe, cosine, fit
from utils.validation import Validation

T = TypeVar("T")
# Options whose change at a resume is not reported: a set may have moved, the horizon is given anew (a change of epochs
# shows as one of `iterations`), and the rest does not alter the course of training.
FREE = (
    "epochs", "minutes", "data", "cache", "workers", "device", "compile", "world_size", "local_rank", "resume",
    "resume_path", "resume_epoch", "log_path", "log_every", "save_every", "eval_interval", "eval_iterations",
    "max_bad_steps", "validation",
)  # fmt: skip
# Options that may differ between machines: where files lie, what processes them, how a decoder rounds a picture.
OWN = (
    "data", "images", "masks", "clips", "val_list", "init", "teacher_weights", "resume_path", "log_path", "cache",
    "workers", "device", "world_size", "local_rank", "validation",
)  # fmt: skip
CLIPS = "clips:"  # the prefix of --data for a folder of videos or frame folders
CLIP_OPTIONS = {"clip_stride": 1, "clip_longest": 640}
TOLERANCE = 0.1  # relative deviation from the paper's iterations x learning rate above which a run prints a note


def add_options(
    parser: argparse.ArgumentParser, *, epochs: int, batch_size: int, eval_interval: int, recipe: str
) -> None:
    """Add the options of a recipe; the keywords are the paper's values where recipes differ."""
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
    add("--seed", type=cli.whole, default=0, help="of weights, order and augmentation (default: %(default)s)")
    add("--workers", type=cli.whole, default=default_workers(), help="worker processes per rank (default: %(default)s)")
    add("--amp", choices=AMP, default="none", help="precision of the convolutions (default: float32)")
    add("--channels_last", action="store_true", help="memory layout that is faster with --amp")
    add("--compile", action="store_true", help="torch.compile the network: minutes at the start, then faster")
    add("--ema", type=cli.decay, default=0.0, help="decay of averaged weights, such as 0.999 (default: none)")
    add("--clip_grad", type=cli.amount, default=0.0, help="largest gradient norm (default: no limit)")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="the paper's adamw (default) or muon, an experiment")
    add("--val_list", help="text file of triplets, videos or clips to validate on (default: last 1 %% of the set)")
    stride, longest = CLIP_OPTIONS.values()
    about = "take every N-th frame of a clip (default: %(default)s)"
    add("--clip_stride", type=cli.positive, default=stride, help=about)
    about = "clips are halved until no side is longer, pixels (default: %(default)s)"
    add("--clip_longest", type=cli.positive, default=longest, help=about)
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
    add("--resume_epoch", type=cli.whole, help="epoch of the weights of --resume_path (default: 0)")
    distributed.add_options(parser)
    cli.add_device(parser)


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
            raise ValueError(f"--data {CLIPS}: name a folder after the colon")
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

    prepare: (batch of the training set, device) -> datasets.Sample on the device. paper: iterations of the published
    recipe, to point out a run that departs from it.
    """
    order = Order(len(train_set), args.batch_size, args.seed, args.accumulate)
    with opened(args, order.per_epoch) as (folder, resume):
        iterations = args.iterations or horizon(args.epochs, order, resume)
        config = recorded(args) | {
            "iterations": iterations,
            "step_size": order.step_size,
            "samples": len(train_set),
            "flow": bool(getattr(train_set, "flow", False)),
            "validation": fingerprint(val_set),
        }
        resume = settled(resume, config, len(val_set))
        if distributed.is_main():
            announce(args, order, iterations, paper, len(train_set), len(val_set), device)
        recipe = Recipe(
            iterations=iterations,
            eval_every=args.eval_iterations or args.eval_interval * order.per_epoch,
            **{
                name: getattr(args, name)
                for name in ("lr_start", "lr_end", "accumulate", "amp", "channels_last", "compile", "ema", "clip_grad")
                + ("optimizer", "log_every", "save_every", "max_bad_steps")
            },
        )

        def batches(start: int):
            ahead = Order(len(train_set), args.batch_size, args.seed, args.accumulate, start)
            return on_device(read(train_set, ahead, args.workers, pin=device.type == "cuda"), prepare, device)

        validate = Validation(val_set, device, args.workers)
        if resume is None:
            averaging = validate.averaging  # all ranks take part
            if distributed.is_main():
                print(f"to beat: the average of both frames scores {averaging:.4f} dB in this validation", flush=True)
        fit(
            model,
            batches,
            loss,
            recipe,
            folder,
            device,
            validate=validate,
            pictures=validate.pictures,
            resume=resume,
            config=config,
        )
    if distributed.is_main():
        if not (folder / checkpoint.BEST).is_file():
            raise ValueError(
                f"{folder}: no {checkpoint.BEST}, so no weights to use: no validation had a finite score, or the disk "
                f"was full; resume from {checkpoint.LATEST}"
            )
        print(f"the run is in {folder}: {checkpoint.BEST}, weights to use; {checkpoint.LATEST}, to resume from")


def horizon(epochs: int, order: Order, content: dict | None) -> int:
    """The iterations that this many epochs take. ValueError where the run to resume made steps of another size: its
    count of iterations would stand for other epochs."""
    before = config_of(content).get("step_size", order.step_size)
    if before != order.step_size and content["iteration"]:
        samples = config_of(content).get("samples", order.length)
        left = epochs - content["iteration"] / max(1, samples // before)
        count = content["iteration"] + max(0, round(left * order.per_epoch))
        raise ValueError(
            f"--epochs {epochs}: the run made steps of {before} samples until now, not of {order.step_size}; make "
            f"processes x --batch_size x --accumulate {before} again, or go on to that epoch with --iterations {count}"
        )
    return epochs * order.per_epoch


@contextmanager
def opened(args: argparse.Namespace, per_epoch: int = 1) -> Iterator[tuple[Path, dict | None]]:
    """Lock the folder of a run; yields it and the checkpoint to resume from, see `find_resume`."""
    folder = Path(args.log_path) / args.model_name
    io.check_writable(folder)
    with io.only_run(folder):
        with distributed.together():
            content = find_resume(args, folder, per_epoch)
        yield folder, content


def settled(content: dict | None, config: dict, validated: int) -> dict | None:
    """The checkpoint to resume from, by `judged_anew`, once all ranks are found to agree; prints which options have
    changed. validated: samples to validate on. ValueError on all ranks where they differ."""
    begun = content["iteration"] if content else "none"
    before = {"iteration to resume from": begun, "samples to validate on": validated}
    distributed.agree(before | {name: value for name, value in config.items() if name not in OWN})
    content = judged_anew(content, config)
    if distributed.is_main():
        tell_changes(content, config)
    return content


def config_of(content: dict | None) -> dict:
    """The options that a checkpoint's run last had, as `recorded` gives them; empty for bare weights."""
    return (content or {}).get("config") or {}


def fingerprint(dataset: Dataset) -> str:
    """Identifies a validation set, wherever it lies, by its length and some of its pictures."""
    digest = hashlib.sha256(str(len(dataset)).encode())
    for index in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        digest.update(dataset[index].imgt.numpy().tobytes())
    return digest.hexdigest()[:16]


def judged_anew(content: dict | None, config: dict) -> dict | None:
    """The checkpoint to resume from, without its best score if that is from another validation set."""
    same = config_of(content).get("validation", config["validation"]) == config["validation"]
    if distributed.gather(same)[0]:  # the main rank's: another machine's decoder may round differently
        return content
    if distributed.is_main():
        print(f"note: the validation samples are not those of before: {checkpoint.BEST} starts afresh", flush=True)
    return content | {"best": -math.inf, "validated": -1}


def recorded(args: argparse.Namespace) -> dict:
    """The options as a checkpoint holds them: numbers and strings alone."""
    return {name: v if isinstance(v, int | float | str | None) else str(v) for name, v in vars(args).items()}


def tell_changes(content: dict | None, config: dict) -> None:
    """Print which options of a resumed run have changed; its schedule and data follow the new ones.

    content: the checkpoint, config: the options now, as `recorded` gives them.
    """
    before = config_of(content)
    changed = [name for name in config if name not in FREE and before.get(name, config[name]) != config[name]]
    for name in changed:
        print(f"note: the run used {name} {before[name]} until now, and {config[name]} from here on", flush=True)


def announce(
    args: argparse.Namespace,
    order: Order,
    iterations: int,
    paper: int | None,
    train: int,
    val: int,
    device: torch.device,
) -> None:
    """Print what this run will do, and a note where it departs from the paper's recipe."""
    ranks = f"{distributed.world_size()} x {args.batch_size}" + f" x {args.accumulate}" * (args.accumulate > 1)
    print(
        f"{args.model_name} on {distributed.world_size()} {device.type}: {train} samples, {val} to validate on; "
        f"{iterations} iterations of {order.step_size} ({ranks}), {iterations / order.per_epoch:.1f} epochs, "
        f"learning rate {args.lr_start:g} -> {args.lr_end:g}",
        flush=True,
    )
    if paper is None:
        return
    ours, theirs = iterations * (args.lr_start + args.lr_end) / 2, paper * cosine(1e-4, 1e-5)(0.5)
    if abs(ours / theirs - 1) > TOLERANCE:
        print(
            f"note: iterations x learning rate is {ours:.3g}, the paper's {theirs:.3g} ({paper} iterations, 1e-4 -> "
            f"1e-5); quality follows it. --iterations {paper} keeps the paper's on any number of processes",
            flush=True,
        )


def newest(folder: Path, recipe: str, instead: str | None = None) -> dict | None:
    """The newest complete checkpoint of a run, if any; prints which are passed over, and whether there is none.

    recipe: the run's. instead: the checkpoint to use where there is none.

    ValueError where there are checkpoints and none is complete, because a new run would overwrite what may still be
    recovered, and where they are another recipe's.
    """
    content, warnings = checkpoint.newest(folder)
    if warnings and content is None:
        raise ValueError(f"{warnings[0]}; repair it or move it away, or start elsewhere with --log_path")
    theirs = config_of(content).get("recipe", recipe)
    if theirs != recipe:
        raise ValueError(f"{folder}: a run of train_{theirs}.py is here; give another --log_path")
    for line in warnings if distributed.is_main() else ():
        print(f"passed over: {line}", flush=True)
    if content is None and distributed.is_main():
        then = f"starting from {instead}" if instead else "starting a new one"
        print(f"{folder}: no run to resume in this folder; {then}", flush=True)
    return content


def refuse_overwriting(folder: Path) -> None:
    """ValueError where a new run would overwrite one, even one with only its previous checkpoint left."""
    if any((folder / name).exists() for name in (checkpoint.LATEST, checkpoint.PREVIOUS)):
        raise ValueError(f"{folder}: a run is here; --resume auto continues it, another --log_path starts elsewhere")


def find_resume(args: argparse.Namespace, folder: Path, per_epoch: int) -> dict | None:
    """The checkpoint to resume from, by --resume, --resume_path and --resume_epoch; None for a new run.

    ValueError where a new run would overwrite one, where the checkpoint is another recipe's, or where --resume_epoch is
    not its own or has no --resume_path.
    """
    if args.resume_epoch is not None and args.resume_path is None:
        raise ValueError(f"--resume_epoch {args.resume_epoch} needs --resume_path, the file to resume from")
    if args.resume == "auto" and (content := newest(folder, args.recipe, args.resume_path)):
        return content
    if args.resume_path is None:
        if args.resume is None:
            refuse_overwriting(folder)
        return None
    content = checkpoint.read(models.checkpoint_path(args.resume_path))
    own = folder.resolve() == Path(args.resume_path).resolve().parent
    if not (own and checkpoint.is_training(content)):  # bare weights start a run of their own
        refuse_overwriting(folder)
    if not checkpoint.is_training(content):
        start = (args.resume_epoch or 0) * per_epoch
        if distributed.is_main():
            begins = f"taken as those of epoch {args.resume_epoch or 0}; the optimizer starts afresh"
            print(f"{args.resume_path}: weights alone, {begins}", flush=True)
        return {"model": bare(content), "iteration": start, "source": args.resume_path}
    theirs = config_of(content).get("recipe", args.recipe)
    if theirs != args.recipe:
        what = f"of a run of train_{theirs}.py; its {checkpoint.BEST} has weights to start from"
        raise ValueError(f"{args.resume_path}: {what}")
    epoch = content["iteration"] // per_epoch
    if args.resume_epoch is not None and args.resume_epoch != epoch:
        raise ValueError(
            f"{args.resume_path}: stands at epoch {epoch}, not {args.resume_epoch}; leave --resume_epoch out"
        )
    return content | {"source": args.resume_path}
