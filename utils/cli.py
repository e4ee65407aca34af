"""The command line of all scripts: options in, one line out when something is wrong.

A ValueError or OSError that reaches the top is about input, a MemoryError about the machine: one line on standard
error, exit status 2. Set VFI_DEBUG=1 to see where it was raised. Anything else is a bug and keeps its traceback.
"""

import argparse
import atexit
import difflib
import errno
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import torch

from models.baselines import NAMES, is_model, is_network
from models.interpolator import NAMED_SCALES, PRECISIONS, nearest_scale

DATA = Path(__file__).resolve().parents[1] / "data"  # where data sets are looked for
# Signals that ask a run to stop: of a scheduler, a person, a closed terminal, Slurm's --signal=USR1@120. Windows lacks
# the last two.
STOPPING = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, n)]
IMPATIENT = 2.0  # seconds: launchers send a signal twice at once; a person who sends it again later means it
# What PyTorch says where a process cannot hand over a tensor: shared memory, or the size of its files, is too small.
NOT_SHARED = re.compile(r"unable to [^<\n]*</torch_\w+>[^:\n]*: ([^(\n]*[^(\s])")
FEWER_WORKERS = (
    "if memory is short, or shared memory in a container (docker run --shm-size), give fewer --workers; --workers 0 "
    "shows any other cause"
)
OF_NETWORKS = ("--scale", "--tile", "--precision", "--fast", "--no_fast")  # options without a meaning for baselines


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose options may be typed with hyphens or underscores and whose errors are one line."""

    def __init__(self, doc: str):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        args = sys.argv[1:] if args is None else args
        end = args.index("--") if "--" in args else len(args)  # no options after it
        args = [underscored(arg) for arg in args[:end]] + list(args[end:])
        parsed, rest = super().parse_known_args(args, namespace)
        self._check_baselines(parsed, {arg.partition("=")[0] for arg in args})
        return parsed, rest

    def _check_baselines(self, parsed: argparse.Namespace, given: set[str]) -> None:
        """An error where only baselines are asked for, and an option that has no meaning for them is given."""
        names = getattr(parsed, "model_name", None)
        if not isinstance(names, list):
            names = [names]
        elif getattr(parsed, "checkpoint", None):
            return  # a network, see `asked`
        for option in OF_NETWORKS:
            if option in given and not any(map(is_network, names)):
                self.error(f"{option} has no effect on {', '.join(names)}; leave it out, or name a network")

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        parsed, rest = self.parse_known_args(args, namespace)
        for word in filter(lambda word: word.startswith("--"), rest):
            if near := difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, 1):
                self.error(f"unknown option {word}; did you mean {near[0]}?")
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def underscored(argument: str) -> str:
    """--lr-start=1e-4 -> --lr_start=1e-4; anything that is no long option stays as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def run(main: Callable[[argparse.Namespace], None], parser: Parser) -> None:
    """Parse the command line and call main(args); turn an error that a user can cause into one line and exit status 2.

    A warning is one line, too, without its place in the code. A character of a name that standard output cannot hold,
    as in a file or pipe on Windows, is printed as its code: it must not end a run whose work is done.
    """
    args = parser.parse_args()
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    usual = warnings.formatwarning
    if not debugging():
        warnings.formatwarning = lambda message, *_, **__: f"{one_line(str(message))}\n"
    with stopped_as_interrupted():
        try:
            message = _complaint(main, args)
        finally:
            warnings.formatwarning = usual
            # While Python ends, an interrupt in one of PyTorch's destructors would be a page of traceback.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        if message is not None:
            line = one_line(f"{Path(sys.argv[0]).name}: {message}")
            print("\n" * sys.stderr.isatty() + line, file=sys.stderr, flush=True)  # below any progress bar
            sys.exit(2)


def _complaint(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> str | None:
    """What a user has to know of the error that ended main(args); None if there was none."""
    try:
        _check_alone(args)
        main(args)
    except KeyboardInterrupt as interrupt:
        return str(interrupt) or "interrupted"
    except torch.cuda.OutOfMemoryError:
        return "the GPU's memory is full; use a smaller batch, size or scale, or --device cpu"
    except (MemoryError, RuntimeError) as error:
        message = short_of_memory(error)
        if debugging() or message is None:
            raise
        return message
    except OSError as error:
        if debugging():
            raise
        said = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return f"{said}; the disk or ulimit -f allows no larger files" if error.errno == errno.EFBIG else said
    except ValueError as error:
        if debugging():
            raise
        return str(error)
    return None


def _check_alone(args: argparse.Namespace) -> None:
    """ValueError where torchrun has started several processes of a script that is for one, which has no --world_size:
    all would do the same work, write the same files, and slow each other where time is measured."""
    if not hasattr(args, "world_size") and os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise ValueError("runs in one process; start it without torchrun")


def short_of_memory(error: MemoryError | RuntimeError) -> str | None:
    """What to say of an error that too little memory causes; None if it is another."""
    text = str(error)
    # Of a tensor on the CPU PyTorch says so in these words, the latter on Windows.
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return "the memory is full; use a smaller batch, size or scale"
    if text.startswith("DataLoader worker"):
        return f"{text.partition('. ')[0]}; {FEWER_WORKERS}"
    if unshared := NOT_SHARED.match(text):
        return f"shared memory: {unshared[1]}; {FEWER_WORKERS}"
    return None


@contextmanager
def handled(kinds: Sequence[signal.Signals], handler: Callable) -> Iterator[None]:
    """Handle these signals by `handler`, except those that are ignored, as SIGHUP is under nohup and SIGINT in the
    background of a shell's script. Outside the main thread, where Python allows no handlers, nothing changes. Processes
    forked meanwhile inherit this and may have to undo it."""
    main = threading.current_thread() is threading.main_thread()
    heard = [kind for kind in kinds if main and signal.getsignal(kind) != signal.SIG_IGN]
    before = {kind: signal.signal(kind, handler) for kind in heard}
    try:
        yield
    finally:
        for kind, own in before.items():
            signal.signal(kind, own)


_interrupted = -math.inf  # when the last interrupt came, in seconds


def interrupt(*_) -> None:
    """The handler of signals that are treated like Ctrl-C. Those that follow within IMPATIENT are ignored: a run that
    ends must not be interrupted while it tidies up."""
    if time.monotonic() - _interrupted > IMPATIENT:
        heard()
        raise KeyboardInterrupt


def heard() -> None:
    """A signal ends the run: `interrupt` and `undisturbed` ignore those that follow within IMPATIENT."""
    global _interrupted
    _interrupted = time.monotonic()


def stopped_as_interrupted() -> AbstractContextManager:
    """Treat all signals of STOPPING like Ctrl-C, by `interrupt`; see `handled`."""
    global _interrupted
    _interrupted = -math.inf
    return handled(STOPPING, interrupt)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay an interrupt to the end of the block, but not a second one that comes after IMPATIENT; those that follow
    within it are ignored, as by `interrupt`. A run interrupted while it starts processes may wait for them without
    end, and a process interrupted while it hands something over prints a traceback."""
    global _interrupted
    since = math.inf

    def note(*_) -> None:
        nonlocal since
        now = time.monotonic()
        if now - since > IMPATIENT:
            interrupt()
        if now - _interrupted > IMPATIENT:
            since = min(since, now)

    interrupting = (interrupt, signal.default_int_handler)  # unlike that of a training, which ends after its step
    with handled([kind for kind in STOPPING if signal.getsignal(kind) in interrupting], note):
        yield
    if since < math.inf:
        _interrupted = since
        raise KeyboardInterrupt


def end_with_parent() -> None:
    """From now on, end this process once the one that started it has ended: where that was killed, a process of a pool
    would wait for work for ever. PyTorch's own watch misses a death that comes before it begins."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def one_line(text: str) -> str:
    return " ".join(text.split())


def debugging() -> bool:
    return os.environ.get("VFI_DEBUG", "") not in ("", "0")


def add_model(parser: argparse.ArgumentParser, several: bool = False, mode: str = "eager") -> None:
    """Add the options that models.baselines.interpolator takes, and --device. several: allow several models, see
    `asked`. mode: that of Interpolator without --fast; where it is "auto", --no_fast turns fast mode off."""
    help = f"{', '.join(NAMES)}, or a .py file with interpolate(img0, img1, t) (default: the checkpoint's, or IFRNet_S)"
    count = {"nargs": "+", "default": [None]} if several else {}
    parser.add_argument("--model_name", type=model, help=help, **count)
    help = "weights: a path (default: those shipped under that name)" + ", or several to compare" * several
    parser.add_argument("--checkpoint", help=help, nargs="+" if several else None)
    help = "of the convolutions (default: fp32; in fast mode, the device's fastest)"
    parser.add_argument("--precision", choices=PRECISIONS, help=help)
    modes = parser.add_mutually_exclusive_group()
    add = partial(modes.add_argument, dest="mode", action="store_const", default=mode)
    where = " (default: on x86 CPUs and H100, H200, for jobs large enough)" if mode == "auto" else ""
    help = "the same weights with kernels of our own, in half precision where the device supports it"
    add("--fast", const="fast", help=help + where)
    if mode == "auto":
        add("--no_fast", const="eager", help="without fast mode")
    add_device(parser)


def refuse(args: argparse.Namespace, options: Parser, names: Sequence[str], why: str) -> None:
    """ValueError for the first of these options that is not at its default. why: what is wrong, and the way out."""
    for name in names:
        value = getattr(args, name)
        if value != options.get_default(name):
            words = () if value is True else value if isinstance(value, list) else (value,)
            raise ValueError(f"{' '.join(map(str, (f'--{name}', *words)))}: {why}")


def asked(args: argparse.Namespace) -> list[tuple[str | None, str | None]]:
    """(name, weights) of each model asked for, without duplicates; with --checkpoint, one network for each of its
    files. ValueError where more than one network is named for them."""
    names = list(dict.fromkeys(args.model_name))
    if not args.checkpoint:
        return [(name, None) for name in names]
    networks = [name for name in names if is_network(name)]
    if len(networks) > 1:
        raise ValueError(f"{args.checkpoint[0]}: a checkpoint fits one network; name one with --model_name, or none")
    baselines = [(name, None) for name in names if not is_network(name)]
    return [*baselines, *((networks[0] if networks else None, path) for path in dict.fromkeys(args.checkpoint))]


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, help="cpu, cuda or cuda:N (default: a GPU where there is one)")


def device(name: str) -> torch.device:
    """The type of --device; argparse puts the option before the error."""
    try:
        wanted = torch.device(name)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"unknown device {name!r}; give cpu, cuda or cuda:N")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"no device {name!r} here ({torch.cuda.device_count()} GPUs); give cpu")
    return wanted


def model(text: str) -> str:
    """The type of --model_name: a name or file that models.baselines.interpolator knows."""
    if not is_model(text):
        raise argparse.ArgumentTypeError(f"unknown model {text!r}; choose one of {', '.join(NAMES)}, or a .py file")
    return text


def scale(text: str) -> float | str:
    """The type of --scale: a number, or one of NAMED_SCALES."""
    if text in NAMED_SCALES:
        return text
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor one of {', '.join(NAMED_SCALES)}") from None
    try:
        return nearest_scale(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """The type of an option that counts something: a whole number from 1 up."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """The type of an option that counts something or nothing: a whole number from 0 up."""
    return _whole(text, 0)


def seed(text: str) -> int:
    """The type of --seed: a whole number that PyTorch's generators take."""
    value = whole(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is too large for a seed; give less than 2^63")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return value


def amount(text: str) -> float:
    """The type of an option that measures something: a number from 0 up."""
    return _number(text, lambda value: 0 <= value < math.inf, "a number from 0 up")


def share(text: str) -> float:
    """The type of an option that is a part of a whole: a number from 0 to 1."""
    return _number(text, lambda value: 0 <= value <= 1, "a share, from 0 to 1")


def decay(text: str) -> float:
    """The type of an option that is the decay of an average: a number from 0 to below 1."""
    return _number(text, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _number(text: str, valid: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
