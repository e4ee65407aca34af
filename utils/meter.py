"""Sums of loss terms, gradient norm and throughput between log lines, kept on the device so that no step waits."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from utils import distributed


class Meter:
    """What happened since the last report, kept on the device until it is read."""

    def __init__(self, device: torch.device):
        self.device = device
        self.streak, self.longest = (torch.zeros((), device=device) for _ in range(2))  # skipped steps in a row
        self.restart()

    def restart(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self.norm, self.bad = (torch.zeros((), device=self.device) for _ in range(2))
        self.steps, self.samples, self.waited, self.begun = 0, 0, 0.0, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in the block."""
        start = time.monotonic()
        yield
        self.begun += time.monotonic() - start

    def timed(self, batches: Iterable) -> Iterator:
        """Yield the batches, and add up the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator)
            self.waited += time.monotonic() - start
            yield batch

    def add(self, terms: dict[str, Tensor], norm: Tensor, bad: Tensor, samples: int) -> None:
        """Count a step. bad: 1 where it was skipped, otherwise 0; see utils.step.step."""
        skipped = bad > 0
        for name, term in terms.items():
            self.terms[name] = self.terms.get(name, 0) + term.masked_fill(skipped, 0)
        self.norm = self.norm + norm.masked_fill(skipped, 0)
        self.bad = self.bad + bad
        self.streak = (self.streak + bad) * bad
        self.longest = torch.maximum(self.longest, self.streak)
        self.steps, self.samples = self.steps + 1, self.samples + samples

    def read(self) -> dict[str, float]:
        """Means over the steps not skipped (NaN where all were) and over all ranks, which the CPU waits for; starts
        again."""
        names = [*self.terms, "grad_norm", "bad_steps"]
        values = torch.stack([*self.terms.values(), self.norm, self.bad]).tolist()
        seconds = time.monotonic() - self.begun
        mine = {**dict(zip(names, values)), "samples_per_s": self.samples / seconds, "wait": self.waited / seconds}
        ranks, total = distributed.world_size(), distributed.sums(mine)
        counted = (self.steps - mine["bad_steps"]) or math.nan
        result = {name: total[name] / ranks / counted for name in (*self.terms, "grad_norm")}
        result |= {"bad_steps": mine["bad_steps"]}
        result |= {"samples_per_s": total["samples_per_s"], "wait": total["wait"] / ranks}
        self.restart()
        return result
