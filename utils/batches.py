"""Which samples make which batch, and how they are read: a function of (seed, iteration) alone.

Neither the number of ranks nor that of workers changes what a step sees, and a run that goes on at iteration n goes on
with the samples that iteration n would have had.
"""

import signal
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from utils import distributed


class Order:
    """An endless batch sampler: this rank's share of every step's samples, as (index, epoch).

    An epoch is a new permutation, cut into steps of ranks * batch_size * accumulate samples; the rest that fills no
    step is left out until the next. start: the iteration to begin at. ValueError where the set does not fill one step.
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0, accumulate: int = 1, start: int = 0):
        self.length, self.batch_size, self.seed, self.accumulate, self.start = (
            length,
            batch_size,
            seed,
            accumulate,
            start,
        )
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
    dataset: Dataset, batch_sampler, workers: int = 0, pin: bool = False, collate: Callable = default_collate
) -> Iterator:
    """Batches by `collate`, read by `workers` processes (0: by this one), some ahead of their use.

    What a data set raises (ValueError, OSError: its user's files) is raised here as it was, whichever process read it.
    """
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=partial(_collate, collate),
        pin_memory=pin,
        worker_init_fn=_begin_worker,
        prefetch_factor=4 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


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


def _collate(collate: Callable, samples: list):
    wrong = [sample for sample in samples if isinstance(sample, Exception)]
    return wrong[0] if wrong else collate(samples)


def _begin_worker(_: int) -> None:
    # A signal to the whole group asks the run to save and stop; workers must outlive it and leave when they are told.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        import cv2

        cv2.setNumThreads(0)  # one process a core is enough
    except ImportError:
        pass
