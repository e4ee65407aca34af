"""A method from elsewhere: a function in a Python file, such as rife.py beside the code that it calls:

    from model.RIFE import Model  # any code, any weights

    def interpolate(img0, img1, t):  # or (img0, img1), if the method knows t = 0.5 only
        return ...

img0 and img1 are RGB in [0, 1], (B, 3, H, W), float32 and on one device, of any size: padding, weights and precision
are up to the method. t is a number in (0, 1). The frame at t has their shape. baselines.External calls the function.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

SUFFIX, FUNCTION = ".py", "interpolate"


def load(path: Path) -> Callable:
    """The function in a file, which is run for it. FileNotFoundError, or ValueError where it has no such function."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a method is a Python file with {FUNCTION}(img0, img1, t)")
    function = getattr(_run(path.resolve()), FUNCTION, None)
    if not callable(function):
        raise ValueError(f"{path}: has no function {FUNCTION}(img0, img1, t); models/external.py shows one")
    return function


def _run(path: Path) -> ModuleType:
    """The file as a module. While it runs, imports find what lies beside it first, also under names that are loaded
    already: other repositories have `models` and `utils`, too."""
    folder = path.parent
    files = {name: getattr(sys.modules[name], "__file__", None) for name in list(sys.modules) if "." not in name}
    elsewhere = {name for name, file in files.items() if not (file and folder in Path(file).resolve().parents)}
    beside = {name for name in elsewhere if (folder / name).is_dir() or (folder / f"{name}{SUFFIX}").is_file()}
    beside -= sys.stdlib_module_names
    hidden = _forget(beside)
    # Without this, a package of theirs that has no __init__.py would not be found before one that has.
    places = {str(parent) for name in beside for parent in Path(files[name] or "").resolve().parents[:2]}
    paths = list(sys.path)
    sys.path[:] = [str(folder), *(entry for entry in paths if str(Path(entry).resolve()) not in places)]
    spec = importlib.util.spec_from_file_location(f"external_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = paths
        _forget(beside)
        sys.modules.update(hidden)
    return module


def _forget(packages: set[str]) -> dict[str, ModuleType]:
    """Unload packages; returns their modules."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in packages}
