"""Endless training batches in which procedural scenes and real footage are mixed.

    mixture = Mixture(material, footage, crop=96, size=8, real=0.25, speed=4, strength=1)
    for batch in mixture.batches(DataLoader(mixture, batch_size=None)):
        batch.img0  # (8, 3, 96, 96): six scenes, then two crops of footage

What a batch holds is a function of (seed, rank, iteration) alone, whatever process makes it. Beside a GPU, which makes
the scenes itself, worker processes read the footage (Footage).
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import count

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from datasets import Sample, clips, transforms
from datasets.effects import BLUR, Effects
from datasets.synthetic import GROUP, Material, Synthetic

SPANS = {3: 0.4, 5: 0.4, 9: 0.2}  # frames per window of footage -> share of the windows: longer ones have faster motion
FORETASTE = 4  # one group in this many has larger crops: a network that saw only small crops fails on large
HALVED = 0.5  # share of the windows that are halved once more if a crop still fits: more content, half the motion
MARGIN = 48  # pixels around a crop that its flow is estimated with


class Unseeded(torch.Generator):
    """A generator that is pickled without its state: another process must seed it before drawing from it."""

    def __reduce__(self) -> tuple:
        return Unseeded, ()


class Mixture(IterableDataset):
    """Endless groups, each the Samples of GROUP batches, determined by (seed, rank, group number): see `batches`.

    material: what scenes are made of. footage: for each of SPANS its windows, by clip; empty: scenes only. Clips that
    are smaller than a crop are left out. crop: side of the samples in pixels. size: samples per batch; real: share of
    footage among them. speed, strength: see Synthetic and Effects. label: from the three frames (3, H, W, 3) uint8 of a
    crop and MARGIN pixels around it to their flow (H, W, 4); None: unknown. start: the iteration to begin at. ahead: a
    mixture of larger crops that supplies every FORETASTE-th group. resident: the footage in the memory of the
    material's device; None: footage is read from disk.
    """

    def __init__(
        self,
        material: Material,
        footage: dict[int, list[list[clips.Window]]],
        crop: int,
        size: int,
        *,
        real: float,
        speed: float,
        strength: float,
        label: Callable[[np.ndarray], np.ndarray] | None = None,
        seed: int = 0,
        rank: int = 0,
        start: int = 0,
        ahead: "Mixture | None" = None,
        resident: clips.Resident | None = None,
    ):
        self.source = Synthetic(material, (crop, crop), speed=speed, blur=BLUR * strength)
        self.source.random = Unseeded()
        self.effects = Effects(strength, material.stencils, self.source.random)
        usable = {span: [w for w in by_clip if w[0].clip.short_side >= crop] for span, by_clip in footage.items()}
        self.footage = {span: by_clip for span, by_clip in usable.items() if by_clip}
        shares = np.array([SPANS[span] for span in self.footage])
        self.shares = shares / shares.sum()
        self.crop, self.label, self.seed, self.rank, self.start = crop, label, seed, rank, start
        self.real = GROUP * round(real * size) if self.footage else 0
        self.scenes = GROUP * size - self.real
        self.ahead, self.resident = ahead, resident

    def __iter__(self) -> Iterator[Sample]:
        return (self.group(number, self.windows(number)) for number in own_groups(self.start))

    def batches(self, groups: Iterable[Sample]) -> Iterator[Sample]:
        """Split groups, the first with iteration `start` in it, into batches from `start` on: scenes, then footage."""
        first = self.start % GROUP
        for group in groups:
            yield from (Sample(*(x[k::GROUP] for x in group)) for k in range(first, GROUP))
            first = 0

    def dice(self, number: int) -> tuple[int, np.random.Generator]:
        """The seed of a group's scenes, and the generator to draw its footage with."""
        rng = np.random.default_rng((self.seed, self.rank, number))
        return int(rng.integers(2**62)), rng

    def goes_ahead(self, number: int) -> bool:
        return self.ahead is not None and number % FORETASTE == FORETASTE - 1

    def windows(self, number: int) -> transforms.Raw | clips.Places | None:
        """A group's footage, or where it lies in the resident footage; None without footage."""
        if self.goes_ahead(number):
            return self.ahead.windows(number)
        _, rng = self.dice(number)
        crops = [self.draw(rng) for _ in range(self.real)]
        if crops and self.resident:
            return self.resident.places(crops, self.crop)
        return transforms.Raw(*map(torch.stack, zip(*map(self.read, crops)))) if crops else None

    def group(self, number: int, real: transforms.Raw | clips.Places | None) -> Sample:
        """The scenes of a group, on the material's device, and its footage."""
        if self.goes_ahead(number):
            return self.ahead.group(number, real)
        self.source.random.manual_seed(self.dice(number)[0])
        parts = [self.source.batch(self.scenes, any_time=True)] if self.scenes else []
        if real is not None:
            raw = self.resident.take(real) if self.resident else real
            parts.append(transforms.finish(raw, self.source.device))
        return self.effects(Sample(*map(torch.cat, zip(*parts))))

    def draw(self, rng: np.random.Generator) -> clips.Crop:
        """A random crop of three frames of a window: both ends and one between. Every clip is equally likely."""
        span = int(rng.choice(list(self.footage), p=self.shares))
        windows = self.footage[span][rng.integers(len(self.footage[span]))]
        window = windows[rng.integers(len(windows))]
        k = int(rng.integers(1, span - 1))
        sides = window.clip.frames.shape[1:3]
        halved = rng.random() < HALVED and min(sides) >= 2 * self.crop
        sides = [side // (1 + halved) for side in sides]
        return clips.Crop(window, (0, k, span - 1), halved, transforms.roll(rng, *sides, self.crop))

    def read(self, crop: clips.Crop) -> transforms.Raw:
        stack, dice = crop.stack(), crop.dice
        if self.label:
            stack, dice = surroundings(stack, dice, self.crop)
            stack = stack._replace(flow=self.label(stack.frames))
        return transforms.take(stack, dice, self.crop)


class Footage(IterableDataset):
    """The footage of a mixture alone, for worker processes beside a GPU: reading a window takes a millisecond, and a
    batch has tens of them."""

    def __init__(self, mixture: Mixture):
        self.mixture = copy.copy(mixture)
        self.mixture.source = self.mixture.effects = None  # tensors on a GPU stay out of other processes
        if mixture.resident:
            self.mixture.resident = copy.copy(mixture.resident)
            self.mixture.resident.pixels = None
        if mixture.ahead:
            self.mixture.ahead = Footage(mixture.ahead).mixture

    def __iter__(self) -> Iterator[transforms.Raw | clips.Places | None]:
        return map(self.mixture.windows, own_groups(self.mixture.start))


def own_groups(start: int) -> Iterator[int]:
    """Numbers of the groups that this process makes, from that of iteration `start` on: all, or 1 in n of n workers."""
    worker = get_worker_info()
    first, step = (worker.id, worker.num_workers) if worker else (0, 1)
    return count(start // GROUP + first, step)


def surroundings(stack: transforms.Stack, dice: transforms.Dice, crop: int) -> tuple[transforms.Stack, transforms.Dice]:
    """The crop of a stack without flow together with MARGIN pixels around it, and the dice relative to that part."""
    factor = 1 + dice.zoom
    top, left = (max(start // factor - MARGIN, 0) for start in (dice.top, dice.left))
    side = crop // factor + 2 * MARGIN + 1
    part = np.stack([frame[top : top + side, left : left + side] for frame in stack.frames])
    return stack._replace(frames=part), dice._replace(top=dice.top - factor * top, left=dice.left - factor * left)
