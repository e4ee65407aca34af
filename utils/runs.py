"""The folder of a training run: its lock, the checkpoint to resume from, and which options changed since."""

import argparse
import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.data import Dataset

import models
from models.weights import bare
from utils import checkpoint, distributed, io

# Options whose change at a resume is not reported: a set may have moved, the horizon is given anew (a change of epochs
# shows as one of `iterations`), and the rest does not alter the course of training.
FREE = (
    "epochs", "minutes", "data", "cache", "workers", "device", "compile", "world_size", "local_rank", "resume",
    "resume_path", "resume_epoch", "log_path", "log_every", "save_every", "eval_interval", "eval_iterations",
    "max_bad_steps", "validation", "epochs_ahead",
)  # fmt: skip
# Options that may differ between machines: where files lie, what processes them, how a decoder rounds a picture.
OWN = (
    "data", "images", "masks", "clips", "val_list", "init", "teacher_weights", "resume_path", "log_path", "cache",
    "workers", "device", "world_size", "local_rank", "validation",
)  # fmt: skip


@contextmanager
def opened(args: argparse.Namespace, per_epoch: int = 1) -> Iterator[tuple[Path, dict | None]]:
    """Lock the folder of a run; yields it and the checkpoint to resume from, see `find_resume`."""
    folder = Path(args.log_path) / args.model_name
    io.check_writable(folder)
    with io.only_run(folder):
        with distributed.together():
            content = find_resume(args, folder, per_epoch)
        yield folder, content


def settled(content: dict | None, config: dict, validated: int, names: Iterable[str]) -> dict | None:
    """The checkpoint to resume from, by `judged_anew`, once all ranks are found to agree; prints which options have
    changed. validated: samples to validate on. names: of all samples. ValueError on all ranks where these differ."""
    begun = content["iteration"] if content else "none"
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
    before = {"iteration to resume from": begun, "samples to validate on": validated, "checksum of the lists": digest}
    distributed.agree(before | {name: value for name, value in config.items() if name not in OWN})
    content = judged_anew(content, config)
    tell_changes(content, config)
    return content


def config_of(content: dict | None) -> dict:
    """The options that a checkpoint's run last had, as `recorded` gives them; empty for bare weights."""
    return (content or {}).get("config") or {}


def epochs_done(content: dict, per_epoch: int) -> float:
    """How many epochs a checkpoint's run has gone through, see epochs.epochs_ahead. per_epoch: steps of one, where the
    checkpoint does not tell."""
    config = config_of(content)
    if "samples" in config:
        per_epoch = max(1, config["samples"] // config["step_size"])
    return config.get("epochs_ahead", 0.0) + content["iteration"] / per_epoch


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
    distributed.say(f"note: the validation samples are not those of before: {checkpoint.BEST} starts afresh")
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
        distributed.say(f"note: the run used {name} {before[name]} until now, and {config[name]} from here on")


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
    for line in warnings:
        distributed.say(f"passed over: {line}")
    if content is None:
        then = f"starting from {instead}" if instead else "starting a new one"
        distributed.say(f"{folder}: no run to resume in this folder; {then}")
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
        epoch = args.resume_epoch or 0
        begins = f"taken as those of epoch {epoch}; the optimizer starts afresh"
        distributed.say(f"{args.resume_path}: weights alone, {begins}")
        return {"model": bare(content), "iteration": epoch * per_epoch, "source": args.resume_path}
    theirs = config_of(content).get("recipe", args.recipe)
    if theirs != args.recipe:
        what = f"of a run of train_{theirs}.py; its {checkpoint.BEST} has weights to start from"
        raise ValueError(f"{args.resume_path}: {what}")
    epoch = math.floor(epochs_done(content, per_epoch) + 1e-6)
    if args.resume_epoch is not None and args.resume_epoch != epoch:
        raise ValueError(
            f"{args.resume_path}: stands at epoch {epoch}, not {args.resume_epoch}; leave --resume_epoch out"
        )
    return content | {"source": args.resume_path}
