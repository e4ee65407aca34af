"""Ranks: how many processes work together, which one this is, its share of the work, and what all of them agree on.

torchrun and `python -m torch.distributed.launch` put rank and world size into the environment; a script started by
neither is rank 0 of 1, and everything here then costs nothing.

    with distributed.ranks(args) as device:
        for i in distributed.shard(range(len(dataset))):
            ...
        everyones = distributed.gather(mine)
"""

import argparse
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from models.interpolator import default_device
from utils import cli

T = TypeVar("T")

GONE = ("Connection closed by peer", "Connection reset by peer")  # what gloo says when another rank has ended
TIMEOUT = timedelta(hours=2)  # one rank may wait for another to validate or score its whole share
MEETING = timedelta(minutes=10)  # PyTorch's own for GPUs, at the start: none of them has anything else to do then


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --world_size and --local_rank: the environment decides, the options are checked against it."""
    parser.add_argument("--world_size", type=int, help="number of processes; must be what the launcher started")
    parser.add_argument("--local_rank", type=int, help="set by torch.distributed.launch; not to be typed")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this rank is the one that prints and writes files."""
    return rank() == 0


def say(line: str) -> None:
    """Print a line, once for all ranks."""
    if is_main():
        print(line, flush=True)


@contextmanager
def ranks(args: argparse.Namespace) -> Iterator[torch.device]:
    """Join the other ranks, if there are any, and leave them at the end; yields the device of this rank.

    args: `device` (None: a GPU for every rank where there are GPUs), `world_size` and `local_rank`. ValueError where
    they are not what the launcher started, or where there are more ranks than GPUs.
    """
    names = {"WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    world, local, here = (_environment(name, default) for name, default in names.items())
    _check(args.world_size, args.local_rank, world, local)
    device = _device(args.device, local, here)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield device
        return
    # gloo carries CPU tensors, also beside nccl: ranks can agree without waiting for their GPUs.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # While PyTorch waits for the others, Python runs no handler; nothing is to be tidied up yet.
    with cli.handled([kind for kind in cli.STOPPING if signal.getsignal(kind) is cli.interrupt], signal.SIG_DFL):
        _join(backend)
    try:
        yield device
    except RuntimeError as error:
        if any(words in str(error) for words in GONE):
            raise ValueError(
                "another process of this run has ended; unless it was killed, its own message says why"
            ) from error
        raise
    finally:
        # Up to PyTorch 2.7, at least, destroying gloo's group waits, holding the GIL, for a thread that may need it to
        # release the last gather's tensors: give that thread time to do so first.
        time.sleep(0.2)
        dist.destroy_process_group()


def shard(indices: Sequence[T]) -> list[T]:
    """This rank's share: every index goes to exactly one rank, none is repeated to make the shares equal."""
    return list(indices[rank() :: world_size()])


def gather(value: T) -> list[T]:
    """Every rank's value (anything that pickles), in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sums(values: dict[str, float]) -> dict[str, float]:
    """Every value summed over all ranks, in double precision. All ranks give the same names in the same order."""
    if world_size() == 1:
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist()))


def maximum(value: torch.Tensor) -> torch.Tensor:
    """The maximum over all ranks, element by element, in place; for a tensor on a GPU the CPU does not wait."""
    if world_size() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def as_on_main(values: Iterable[torch.Tensor]) -> None:
    """Give all ranks what the main rank holds, in place."""
    for value in values if world_size() > 1 else ():
        dist.broadcast(value, 0)


def barrier() -> None:
    """Wait until every rank is here."""
    gather(None)


@contextmanager
def together() -> Iterator[None]:
    """End all ranks where one raises a ValueError or OSError in the block; that rank says why. Otherwise the others
    would wait for it until they are killed."""
    problem = None
    try:
        yield
    except (ValueError, OSError) as error:
        problem = error
    if maximum(torch.tensor(float(problem is not None))):
        raise problem or SystemExit(2)


def agree(values: dict) -> None:
    """ValueError on every rank, naming the first of `values` (anything that pickles, under the same names) that is not
    the same on all of them."""
    every = gather(values)
    for name, ours in every[0].items():
        for number, theirs in enumerate(every):
            if theirs[name] != ours:
                raise ValueError(
                    f"{name} is {ours} for process 0 and {theirs[name]} for process {number}: all machines need the "
                    "same command, the same lists, and --log_path on a disk that they share"
                )


def _join(backend: str) -> None:
    """Meet the other ranks. ValueError where they, or the launcher, are not there within the time of MEETING."""
    try:
        # Apart from the next: ranks whose launcher was killed meanwhile would look for it until the time is over.
        store, number, world = next(dist.rendezvous("env://", timeout=MEETING))
        store.set_timeout(TIMEOUT)
        dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=TIMEOUT)
    except dist.DistError as error:
        raise ValueError(f"the other processes of this run, or their launcher, cannot be met: {error}") from error


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r} in the environment is not a number; start with torchrun, or unset it")
    return int(text)


def _check(wanted: int | None, given: int | None, world: int, local: int) -> None:
    if wanted is not None and wanted != world:
        raise ValueError(
            f"--world_size {wanted}, but the number of processes is {world}; start that many with "
            f"torchrun --nproc_per_node={max(wanted, 1)}, or leave the option out"
        )
    if given is not None and given != local:
        raise ValueError(f"--local_rank {given}, but the launcher says LOCAL_RANK={local}; leave the option out")


def _device(wanted: torch.device | None, local: int, here: int) -> torch.device:
    """cuda means one GPU for each of the `here` ranks of this machine, by its local rank; cuda:N and cpu are taken as
    they are."""
    if wanted is None:
        wanted = default_device()
    if wanted.type != "cuda":
        return wanted
    gpus = torch.cuda.device_count()
    if here > gpus:
        raise ValueError(f"{here} processes on this machine, but {gpus} GPUs; start {gpus}, or give --device cpu")
    if wanted.index is not None and here > 1:
        raise ValueError(f"--device {wanted} is one GPU for {here} processes; give --device cuda")
    return wanted if wanted.index is not None else torch.device("cuda", local)
