"""native.c and winograd.c as a library: compiled for the CPU that it runs on when first used, and called with tensors.

Inference calls it in kernels.py and winograd.py; training calls single functions where `library` has them for a tensor,
and otherwise runs in plain PyTorch.
"""

import atexit
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from contextlib import nullcontext, suppress
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

SOURCES = tuple(Path(__file__).with_name(name) for name in ("native.c", "winograd.c"))
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno")
DEFINES = {torch.bfloat16: (), torch.float32: ("-DFLOAT32",)}


class Library:
    """The functions for values of one type. OSError if no compiler can build them."""

    def __init__(self, dtype: torch.dtype):
        library = build(dtype)
        try:
            self._functions = ctypes.CDLL(str(library))
        except OSError:  # the cached library is damaged
            with suppress(OSError):
                library.unlink()
            self._functions = ctypes.CDLL(str(build(dtype)))

    def has(self, name: str) -> bool:
        """Whether there is a function of this name: not all are built for every processor."""
        return hasattr(self._functions, name)

    def call(self, name: str, *arguments: Tensor | int | None) -> None:
        """Call a function by name: tensors become pointers to their values, and the number of threads comes last."""
        pointers = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
        numbers = [ctypes.c_long(a) if isinstance(a, int) else a for a in pointers]
        # Without this a profiler would not see the call, which PyTorch does not make.
        with record_function(name) if torch.autograd._profiler_enabled() else nullcontext():
            getattr(self._functions, name)(*numbers, ctypes.c_int(torch.get_num_threads()))


def library(x: Tensor) -> Library | None:
    """The functions for tensors like x; None where there are none, and while torch.compile or an exporter traces."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor
    return None if watched or x.device.type != "cpu" or x.dtype not in DEFINES else _library(x.dtype)


@cache
def _library(dtype: torch.dtype) -> Library | None:
    try:
        return Library(dtype)
    except OSError as error:
        warnings.warn(f"training continues in plain PyTorch, which is slower: {error}", stacklevel=2)
        return None


def build(dtype: torch.dtype) -> Path:
    """The library for this machine and type, compiled once (a second) and cached where PyTorch keeps its extensions; if
    nothing can be written there, kept until the process ends. OSError if no compiler can build it."""
    compiler = find_compiler()
    command = [*compiler, *FLAGS, *DEFINES[dtype]]
    # In a session of its own: a signal to all of a training, which ends after its step, must not end the compiler.
    apart = {"start_new_session": True, "capture_output": True, "text": True, "errors": "replace", "check": True}
    run = partial(subprocess.run, **apart)
    kept = None
    try:
        # The predefined macros tell the compiler's version and the processor's instructions, so that a library built
        # by another machine in a shared home directory is not used here.
        predefined = run([*command, "-E", "-dM", "-x", "c", os.devnull]).stdout
        text = "".join(source.read_text() for source in SOURCES)
        name = f"native-{hashlib.sha256((text + predefined).encode()).hexdigest()[:16]}.so"
        with suppress(OSError, RuntimeError):  # the home directory may be missing or unreadable
            kept = cache_folder() / name
            if kept.is_file():
                return kept
        with tempfile.TemporaryDirectory(prefix="ifrnet-") as folder:
            library = Path(folder) / name
            run([*command, "-shared", "-fPIC", *map(str, SOURCES), "-o", str(library), "-lm"])
            code = library.read_bytes()
    except subprocess.CalledProcessError as error:
        names = " and ".join(source.name for source in SOURCES)
        raise OSError(f"{shlex.join(compiler)} cannot build {names}: {error.stderr.strip()[:200]}") from error
    with suppress(OSError):
        if kept:
            write(kept, code)
            return kept
    folder = tempfile.mkdtemp(prefix="ifrnet-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(Path(folder) / name, code)
    return Path(folder) / name


def find_compiler() -> list[str]:
    """The command of a C compiler. OSError where there is none."""
    named = os.environ.get("CC", "").strip()
    if not named:
        found = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
        if not found:
            raise OSError("there is no C compiler")
        return found[:1]
    if shutil.which(named):
        return [named]
    try:
        command = shlex.split(named)  # as "ccache gcc"
    except ValueError as error:
        raise OSError(f"CC={named}: {error}") from error
    if not shutil.which(command[0]):
        raise OSError(f"CC={named}: there is no such compiler")
    return command


def write(file: Path, content: bytes) -> None:
    """Write a file atomically, whoever else writes it at the same time. Makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.stem}.", dir=file.parent) as folder:
        temporary = Path(folder) / file.name
        temporary.write_bytes(content)
        temporary.replace(file)


def cache_folder() -> Path:
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    return Path(root) / "ifrnet"
