"""Training checkpoints: plain dicts of tensors and numbers; a file is complete or absent.

A run's folder holds `latest.pth` and the one before it, `previous.pth`; `best.pth` is a bare state_dict to hand on.
"""

import os
from pathlib import Path

import torch

from models.weights import bare, check_finite, read_checkpoint
from utils.io import clear_left, replacing

LATEST, PREVIOUS, BEST = "latest.pth", "previous.pth", "best.pth"
# Tells our training checkpoints from bare weights and from the checkpoints of other programs.
NEEDED = {"model", "optimizer", "scaler", "iteration", "validated", "best", "seconds", "random"}


def write(path: str | Path, content: dict) -> None:
    """Write under a temporary name, make sure that it is on the disk, and rename."""
    with replacing(path) as temporary:
        _dump(temporary, content)


def _dump(path: Path, content: dict) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's, of which the cause is often the error that was raised before
        if isinstance(cause := error.__context__, OSError):
            raise OSError(cause.errno, cause.strerror) from error
        raise OSError(f"{path.parent}: the checkpoint could not be written; is the disk full?") from error


def read(path: str | Path) -> dict:
    """A dict of tensors and numbers, on the CPU. FileNotFoundError, or ValueError for a file that is truncated or no
    checkpoint, or whose weights are not finite.

    Nothing in the file is executed.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no dict; a training checkpoint or a state_dict is needed")
    check_finite(path, bare(content))
    return content


def is_training(content: dict) -> bool:
    """Whether this is a complete training checkpoint, not weights alone."""
    return NEEDED <= content.keys()


def save(folder: str | Path, content: dict) -> None:
    """Make `content` the newest checkpoint of a run; the one before it stays as `previous.pth`."""
    folder = Path(folder)
    latest = folder / LATEST
    for name in (LATEST, BEST):
        clear_left(folder / name)
    with replacing(latest) as temporary:
        _dump(temporary, content)
        if latest.is_file():
            latest.replace(folder / PREVIOUS)


def newest(folder: str | Path) -> tuple[dict | None, list[str]]:
    """The newest complete checkpoint of a run, or None, and a line for each that was passed over."""
    warnings = []
    for name in (LATEST, PREVIOUS):
        path = Path(folder) / name
        if not path.exists():
            continue
        try:
            content = read(path)
        except ValueError as error:
            warnings.append(str(error))
            continue
        if is_training(content):
            return content, warnings
        warnings.append(f"{path}: weights alone, not a run to resume")
    return None, warnings
