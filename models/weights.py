"""Reading checkpoints: tensors and numbers, never code, whatever a training script wrapped around the weights."""

import re
from pathlib import Path

import torch
from torch import Tensor

# Under which names training scripts keep a network's weights: the averaged ones first.
WRAPPED = ("ema", "params_ema", "model", "state_dict", "model_state_dict", "params", "net")


def read_checkpoint(path: str | Path) -> object:
    """What torch.save wrote, on the CPU. Nothing in the file is executed.

    FileNotFoundError, or ValueError, in one line, for a file that is truncated or holds more than tensors and numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch raises all kinds for a truncated or foreign file
            what = "not an intact checkpoint of tensors only, so it was not loaded; copy or make it again"
            raise ValueError(f"{path}: {what}") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state_dict or of a training checkpoint (see WRAPPED), on the CPU.

    The prefixes of DataParallel and torch.compile are dropped. Raises as `read_checkpoint` does, and ValueError where
    there are no weights, or some that are not finite.
    """
    content = read_checkpoint(path)
    state = bare(content) if isinstance(content, dict) else {}
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: holds no weights; a state_dict or a training checkpoint is needed")
    check_finite(path, state)
    return state


def check_finite(path: str | Path, state: dict) -> None:
    """ValueError, naming the file, where a tensor holds values that are NaN or infinite, or cannot be read."""
    for name, value in state.items():
        try:
            finite = not isinstance(value, Tensor) or bool(value.isfinite().all())
        except RuntimeError as error:
            kind = f"{value.dtype}, {value.layout}, {value.device}"
            raise ValueError(f"{path}: {name} ({kind}) cannot be read; save it as dense floats") from error
        if not finite:
            raise ValueError(f"{path}: {name} holds NaN or infinity, as after training that diverged")


def bare(content: dict) -> dict:
    """The weights of a state_dict or of a training checkpoint, under the names that the network itself gives them."""
    inside = (content.get(key) for key in WRAPPED)
    held = (x for x in inside if isinstance(x, dict) and any(isinstance(value, Tensor) for value in x.values()))
    state = next(held, content)
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): value for name, value in state.items()}
