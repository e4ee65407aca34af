"""Which samples form which batch, a function of (seed, iteration) alone, and how they are read.

What a step sees does not depend on the number of workers, nor on the number of ranks as long as ranks * batch_size *
accumulate stays the same; a run resumed at iteration n gets the samples that iteration n would have had.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.util import Finalize
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from utils import cli, distributed
from utils.ahead import ahead

T = TypeVar("T")
AHEAD = 4  # batches prefetched by each reading process, or by the reading thread
STREAM_AHEAD = 2  # the same for an iterable set, whose items are larger


def default_workers() -> int:
    """Reading processes per rank: its share of the cores, at most 8, which saturate a current GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")  # distributed.ranks reports an invalid one
    return min(8, cores // max(int(ranks) if ranks.isdecimal() else 1, 1))


class Order:
    """An endless batch sampler: this rank's share of every step's samples, as (index, epoch).

    An epoch is a new permutation, cut into steps of ranks * batch_size * accumulate samples; a remainder that does not
    fill a step is skipped. start: the iteration to begin at. ahead: epochs gone through beyond those that the
    iterations make, see epochs.epochs_ahead. ValueError where the set does not fill one step.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, accumulate: int = 1, start: int = 0, ahead: int = 0
    ):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.accumulate, self.start, self.ahead = accumulate, start, ahead
        self.step_size = distributed.world_size() * batch_size * accumulate
        self.per_epoch = length // self.step_size
        if not self.per_epoch:
            raise ValueError(f"{length} samples do not fill one step of {self.step_size}; give a smaller --batch_size")

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        iteration, shuffled = self.start, None
        while True:
            epoch, step = divmod(iteration, self.per_epoch)
            epoch += self.ahead
            if shuffled is None or step == 0:
                shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            first = step * self.step_size + distributed.rank() * self.batch_size
            for _ in range(self.accumulate):
                yield [(int(index), epoch) for index in shuffled[first : first + self.batch_size]]
                first += distributed.world_size() * self.batch_size
            iteration += 1


def load(
    dataset: Dataset,
    batch_sampler: Iterable[list],
    workers: int = 0,
    pin: bool = False,
    collate: Callable = default_collate,
    depth: int = AHEAD,
) -> Iterator:
    """Yield batches made by `collate`, `depth` of them prefetched by each of `workers` processes (0: read by this one).

    A ValueError or OSError of the data set (a fault in the user's files) is raised here unchanged, whichever process
    read it.
    """
    collate = partial(_collate, collate)
    return _received(_Guarded(dataset), workers, pin, depth, batch_sampler=batch_sampler, collate_fn=collate)


def stream(dataset: IterableDataset, workers: int = 0, pin: bool = False) -> Iterator:
    """Yield the items of an iterable set as `workers` processes produce them; errors as with `load`."""
    return _received(_GuardedStream(dataset), workers, pin, STREAM_AHEAD, batch_size=None)


def read(dataset: Dataset, order: Order, workers: int = 0, pin: bool = False) -> Iterator:
    """Yield the batches of a training set in this order, in the fastest way that it offers.

    A set with `batch(keys)` needs no processes: one thread prefetches batches, or, where the set lies on the device
    (it has `device`), a batch is gathered when it is asked for. All others are read by `load`.
    """
    if not hasattr(dataset, "batch"):
        return load(dataset, order, workers, pin)
    batches = (dataset.batch(keys) for keys in order)
    if hasattr(dataset, "device"):
        return batches
    if pin:
        batches = (type(batch)(*(x.pin_memory() for x in batch)) for batch in batches)
    return ahead(batches, AHEAD) if workers else batches


def on_device(batches: Iterator, prepare: Callable[[tuple, torch.device], T], device: torch.device) -> Iterator[T]:
    """Yield prepare(batch, device) for each; on a GPU, during the previous step, so that no step waits for a copy."""
    if device.type != "cuda":
        for batch in batches:
            yield prepare(batch, device)
        return
    beside, iterator = torch.cuda.Stream(device), iter(batches)
    while True:
        with torch.cuda.stream(beside):  # next() too: a set that lies on the device gathers its batch here
            batch = next(iterator, None)
            if batch is None:
                return
            ready = prepare(batch, device)
        now = torch.cuda.current_stream(device)
        now.wait_stream(beside)
        for x in ready:
            x.record_stream(now)  # its memory is not reused before the step that reads it is over
        yield ready


def _received(dataset: Dataset, workers: int, pin: bool, depth: int, **options) -> Iterator:
    loader = DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=begin_worker,
        prefetch_factor=depth if workers else None,
        **options,
    )
    if workers:
        _kill_at_exit(os.getpid())
    try:
        with cli.undisturbed(), _held_back(cli.STOPPING):
            iterator = iter(loader)
    except OSError as error:  # such as of a semaphore, which is a file in shared memory; it names nothing
        _drop_half_made(error)
        raise OSError(f"reading processes: {error.strerror}; {cli.FEWER_WORKERS}") from error
    processes = multiprocessing.active_children()
    try:
        while True:
            try:
                with cli.undisturbed():
                    batch = next(iterator, loader)
            except (ConnectionError, EOFError) as error:  # a process was killed while handing over a batch:
                time.sleep(1)  # PyTorch's own error, which says so, needs a moment to arrive
                # From Python 3.14 on it never does: there a server starts the processes, and learns of their end.
                ended = ", ".join(str(process.pid) for process in processes if not process.is_alive())
                raise RuntimeError(f"DataLoader worker (pid {ended}) was killed") from error
            if batch is loader:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        with cli.undisturbed():  # an interrupt in a destructor would be printed, and lost
            del iterator  # ends the processes, even where an exception's traceback still holds this frame


def _drop_half_made(error: OSError) -> None:
    """Free the iterator that could not be made: its destructor knows only whole ones, and would print a traceback."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = before


@contextmanager
def _held_back(kinds: Sequence[signal.Signals]) -> Iterator[None]:
    """Signals come at the end of the block, and never to a process that is forked in it: a reading process would be
    ended by SIGTERM between PyTorch's handler and `begin_worker`, and its run with it, in place of being saved."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kinds)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Guarded(Dataset):
    """Returns errors instead of raising them: a DataLoader turns what a worker raises into a page of text."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except (ValueError, OSError) as error:
            return error


class _GuardedStream(IterableDataset):
    """The same for an iterable set; an error is the last item."""

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def __iter__(self) -> Iterator:
        try:
            yield from self.dataset
        except (ValueError, OSError) as error:
            yield error


def _collate(collate: Callable, samples: list):
    wrong = [sample for sample in samples if isinstance(sample, Exception)]
    try:
        return wrong[0] if wrong else collate(samples)
    except RuntimeError as error:
        if (message := cli.short_of_memory(error)) is None:
            raise
        return OSError(message)  # of one rank: the others then end with it


@cache
def _kill_at_exit(_: int) -> None:
    """Once per process: kill the reading processes that are left when it exits, as after an error. multiprocessing
    would send them SIGTERM, which they ignore, and wait. Those of a killed run end by themselves."""

    def kill() -> None:
        if hasattr(signal, "SIGCHLD"):  # not on Windows; PyTorch's handler raises an error when a reading process ends
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    Finalize(None, kill, exitpriority=1)


def begin_worker(_: int) -> None:
    """Set up a reading process: it ignores the signals that the run handles, ends with the run, and reads in one
    thread."""
    # A signal to the process group asks the run to save and stop; until then it needs its reading processes.
    for kind in cli.STOPPING:
        signal.signal(kind, signal.SIG_IGN)
    cli.end_with_parent()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_not_handed_over)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _not_handed_over(error: Exception, _) -> None:
    """End this process, of which the run then learns: multiprocessing would print the error and drop the batch, for
    which the run would wait without end. One that a user can cause is told by the run."""
    short = isinstance(error, MemoryError | RuntimeError) and cli.short_of_memory(error)
    if not short and not isinstance(error, OSError):
        traceback.print_exception(error)
    os._exit(1)
