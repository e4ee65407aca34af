"""Which samples make which batch, and how they are read: a function of (seed, iteration) alone.

The number of workers never changes what a step sees, nor does that of ranks while ranks * batch_size * accumulate stays
the same; a run that goes on at iteration n goes on with the samples that iteration n would have had.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.util import Finalize
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from utils import distributed
from utils.ahead import ahead

T = TypeVar("T")
AHEAD = 4  # batches that are ready before their use, for each reading process
STREAM_AHEAD = 2  # items of an iterable set, which are larger


def default_workers() -> int:
    """Reading processes for each rank: its share of the cores, up to 8, which saturate a GPU of today."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")  # what is wrong with it, distributed.ranks says
    return min(8, cores // max(int(ranks) if ranks.isdecimal() else 1, 1))


class Order:
    """An endless batch sampler: this rank's share of every step's samples, as (index, epoch).

    An epoch is a new permutation, cut into steps of ranks * batch_size * accumulate samples; the rest that fills no
    step is left out until the next. start: the iteration to begin at. ValueError where the set does not fill one step.
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0, accumulate: int = 1, start: int = 0):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.accumulate, self.start = accumulate, start
        self.step_size = distributed.world_size() * batch_size * accumulate
        self.per_epoch = length // self.step_size
        if not self.per_epoch:
            raise ValueError(f"{length} samples do not fill one step of {self.step_size}; give a smaller --batch_size")

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        iteration, shuffled = self.start, None
        while True:
            epoch, step = divmod(iteration, self.per_epoch)
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
) -> Iterator:
    """Batches by `collate`, read by `workers` processes (0: by this one), some ahead of their use.

    What a data set raises (ValueError, OSError: its user's files) is raised here as it was, whichever process read it.
    """
    collate = partial(_collate, collate)
    return _received(_Guarded(dataset), workers, pin, AHEAD, batch_sampler=batch_sampler, collate_fn=collate)


def stream(dataset: IterableDataset, workers: int = 0, pin: bool = False) -> Iterator:
    """What an iterable set makes, item by item, as it is made by `workers` processes; errors as with `load`."""
    return _received(_GuardedStream(dataset), workers, pin, STREAM_AHEAD, batch_size=None)


def read(dataset: Dataset, order: Order, workers: int = 0, pin: bool = False) -> Iterator:
    """Batches of a training set in this order, by the quickest way that it offers.

    A set with `batch(keys)` needs no processes: one thread copies some batches ahead, or, where it lies on the device
    (`device`), a batch is drawn when it is wanted. All others are read by `load`.
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
    """prepare(batch, device) for each; on a GPU beside the step before it, so that no step waits for a copy."""
    if device.type != "cuda":
        for batch in batches:
            yield prepare(batch, device)
        return
    beside, iterator = torch.cuda.Stream(device), iter(batches)
    while True:
        with torch.cuda.stream(beside):  # drawing too: what lies on the device is gathered there
            batch = next(iterator, None)
            if batch is None:
                return
            ready = prepare(batch, device)
        now = torch.cuda.current_stream(device)
        now.wait_stream(beside)
        for x in ready:
            x.record_stream(now)  # its memory is not free before the step that reads it is over
        yield ready


def _received(dataset: Dataset, workers: int, pin: bool, ahead: int, **options) -> Iterator:
    loader = DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=begin_worker,
        prefetch_factor=ahead if workers else None,
        **options,
    )
    iterator = iter(loader)
    if workers:
        _kill_at_exit(os.getpid())
    try:
        while True:
            try:
                with _undisturbed():
                    batch = next(iterator, loader)
            except (ConnectionError, EOFError):  # a process was killed in handing over a batch:
                time.sleep(1)  # PyTorch's error, which says so, is on its way
                raise
            if batch is loader:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        del iterator  # ends the processes, even where an exception's traceback still holds this frame


class _Guarded(Dataset):
    """A DataLoader wraps what a worker raises into a page of text; a returned error stays one line."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except (ValueError, OSError) as error:
            return error


class _GuardedStream(IterableDataset):
    """The same of a set that is iterated over; the error is the last that comes."""

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def __iter__(self) -> Iterator:
        try:
            yield from self.dataset
        except (ValueError, OSError) as error:
            yield error


def _collate(collate: Callable, samples: list):
    wrong = [sample for sample in samples if isinstance(sample, Exception)]
    return wrong[0] if wrong else collate(samples)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps the first Ctrl-C until the end: a worker that is left alone in handing over a batch prints a traceback."""
    ours = threading.current_thread() is threading.main_thread()  # Python allows handlers there alone
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number, frame) -> None:
        nonlocal came
        if came:  # who insists does not want to wait for the batch
            raise KeyboardInterrupt
        came = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


@cache
def _kill_at_exit(_: int) -> None:
    """Once a process: have reading processes that are left at its end killed, as after an error. multiprocessing would
    ask them by SIGTERM, which they do not hear, and wait. Those of a killed run end by themselves, within seconds."""

    def kill() -> None:
        if hasattr(signal, "SIGCHLD"):  # not on Windows; PyTorch raises an error where a reading process ends
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    Finalize(None, kill, exitpriority=1)


def begin_worker(_: int) -> None:
    """What every reading process starts with: signals are the run's affair, and one process a core is enough."""
    # A signal to the whole group asks the run to save and stop, however long a validation takes before it does.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        import cv2

        cv2.setNumThreads(0)
    except ImportError:
        pass
