"""Weight files in: tensors and nothing else, whatever a training script wrapped around them."""

import pickle
from pathlib import Path

import torch
from torch import Tensor


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state_dict or of a training checkpoint ("ema" before "model"), on the CPU.

    The prefixes of DataParallel and torch.compile are dropped. Nothing in the file is executed. FileNotFoundError or
    ValueError, in one line, where there are no whole weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    with path.open("rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        # OSError: a file that was cut makes torch seek to before its beginning.
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            raise ValueError(f"{path}: not a whole checkpoint of tensors alone, so it was not loaded") from error
    if isinstance(state, dict):
        state = state.get("ema") or state.get("model") or state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: holds no weights; a state_dict or a training checkpoint of this project is needed")
    return {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in state.items()}
