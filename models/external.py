"""A method from elsewhere: a function in a Python file, such as rife.py beside the code that it calls:

    from model.RIFE import Model  # any code, any weights

    def interpolate(img0, img1, t):  # or (img0, img1), if the method knows t = 0.5 only
        return ...

img0 and img1 are RGB in [0, 1], (B, 3, H, W), float32 and on one device, of any size: padding, weights and precision
are up to the method. t is a number in (0, 1), for the third parameter, whatever its name. The frame at t is a tensor of
floats of their shape and range. baselines.External calls the function.

Code in other places can be added to sys.path, but not under the names of our packages (models, utils, ...): these are
found beside the file only. A result records the hash of the file, not those of the code and weights that it uses. If
these change while a benchmark is interrupted, delete .unfinished-* in its --out: it would go on with older scores.
"""

import importlib.util
import inspect
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .interpolator import BRIGHTEST

SUFFIX, FUNCTION = ".py", "interpolate"
ROOT = Path(__file__).resolve().parents[1]
OURS = (ROOT, ROOT / "benchmarks") if __package__ == "models" else ()  # not where installed, as `ifrnet`
ALONE = threading.RLock()  # held while a method's code runs: `sys` and PyTorch's defaults are the whole process's


class Method:
    """The function in a file, which is run for it. any_time: whether it takes t.

    FileNotFoundError, or ValueError where the file has no such function. A ValueError or OSError that its code raises
    becomes a RuntimeError, as it is no fault in our command line and its traceback is wanted, and so does SystemExit,
    which would end ours without a result; all else stays as it is.
    ValueError for a result that is not a frame.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; a method is a Python file with {FUNCTION}(img0, img1, t)")
        self.path, self.judged, file = path, False, path.resolve()
        self.paths = [str(file.parent), *(entry for entry in sys.path if Path(entry).resolve() not in OURS)]
        spec = importlib.util.spec_from_file_location(f"external_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        self.defaults = _defaults()
        self.names, self.modules = {spec.name, *_beside(file.parent, self.paths)}, {spec.name: module}
        place, words = os.getcwd(), sys.argv
        sys.argv = [str(file)]  # it is not its command line that was typed
        try:
            with self._at_home():
                spec.loader.exec_module(module)
        finally:
            sys.argv = words
            os.chdir(place)
        self.function = getattr(module, FUNCTION, None)
        if not callable(self.function):
            raise ValueError(f"{path}: has no function {FUNCTION}(img0, img1, t); models/external.py shows one")
        self.any_time = self._takes(3)
        if not self.any_time and not self._takes(2):
            raise ValueError(f"{path}: {FUNCTION} takes other arguments than (img0, img1, t) or (img0, img1)")

    def __call__(self, img0: Tensor, img1: Tensor, t: float) -> Tensor:
        with self._at_home():
            pair = img0.clone(), img1.clone()  # some change what they are given
            frame = self.function(*pair, *([t] if self.any_time else ()))
        if not isinstance(frame, Tensor):
            raise ValueError(f"{self.path}: {FUNCTION} returned a {type(frame).__name__}, not a tensor")
        if frame.shape != img0.shape:
            shapes = f"{tuple(frame.shape)} for frames of {tuple(img0.shape)}"
            raise ValueError(f"{self.path}: {FUNCTION} returned {shapes}; the shapes must be the same")
        if not frame.is_floating_point():
            raise ValueError(f"{self.path}: {FUNCTION} returned {frame.dtype}; floats in [0, 1] are needed")
        if not self.judged or frame.device.type == "cpu":  # on a GPU it synchronises: the first frame alone
            self.judged = True
            mean = frame.float().mean().item()  # as single values may overshoot
            if abs(mean) > BRIGHTEST:
                raise ValueError(f"{self.path}: {FUNCTION} returned values that are {mean:g} on average, not in [0, 1]")
        return frame

    def _takes(self, count: int) -> bool:
        try:
            inspect.signature(self.function).bind(*range(count))
        except TypeError:
            return False
        except ValueError:  # TorchScript's functions have no signature
            return True
        return True

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        """Here imports find what lies beside the file, also under names that are ours or another method's: other
        repositories have `models` and `utils`, too. Default types and devices that it sets are its own. What it prints
        does not get into our output."""
        with ALONE:
            hidden, paths, defaults = _taken(self.names), sys.path[:], _defaults()
            sys.modules.update(self.modules)
            sys.path[:] = self.paths
            _set_defaults(*self.defaults)
            try:
                with redirect_stdout(sys.stderr):
                    yield
            except (ValueError, OSError) as error:
                raise RuntimeError(f"{self.path}: {error}") from error
            except SystemExit as error:
                raise RuntimeError(f"{self.path}: {error!r}") from error
            finally:
                self.paths, self.modules, self.defaults = sys.path[:], _taken(self.names), _defaults()
                _set_defaults(*defaults)
                sys.path[:] = paths
                sys.modules.update(hidden)


def _beside(folder: Path, paths: list[str]) -> set[str]:
    """The names of modules that these paths, of which the folder is first, lead to in it. Without those that are loaded
    from there, and packages that are installed and loaded: other threads of ours may need these at any time."""
    found = set()
    names = {path.stem for path in folder.iterdir() if path.suffix == SUFFIX or path.is_dir()}
    for name in names - sys.stdlib_module_names:
        place, installed = _place(name, paths), _place(name, paths[1:])
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if place and folder in Path(place).parents and (loaded is None or loaded not in (place, installed)):
            found.add(name)
    return found


def _place(name: str, paths: list[str]) -> str | None:
    """Where a module is found: its file, or the folder of a package without __init__.py."""
    spec = PathFinder.find_spec(name, paths)
    return spec and (spec.origin or next(iter(spec.submodule_search_locations)))


def _taken(names: set[str]) -> dict[str, ModuleType]:
    """The modules of these packages, no longer loaded."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}


def _defaults() -> tuple[torch.dtype, torch.device]:
    """What PyTorch makes new tensors of, and where: torch.get_default_device fails in 2.6 once that was set to None."""
    return torch.get_default_dtype(), torch.empty(0).device


def _set_defaults(dtype: torch.dtype, device: torch.device) -> None:
    torch.set_default_dtype(dtype)
    if device != torch.empty(0).device:  # one that is set, even to the CPU, makes every call of PyTorch's slower
        torch.set_default_device(None if device.type == "cpu" else device)
