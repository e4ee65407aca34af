"""What the tests of mixed training data are made of: small clips in motion, and batches of a mixture."""

from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets import clips, synthetic
from datasets.mixture import SPANS
from datasets.stencils import drawn_stencils


def small_material():
    windows = synthetic.photo_patches(side=96)
    return synthetic.Material(windows, torch.ones(len(windows)), drawn_stencils(40))


def clip(name, frames=12, size=(64, 80), seed=0):
    """Blocks of noise that move by 2 pixels a frame."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, (size[1] + 2 * frames) // 8 + 1, 3), np.uint8)
    wide = noise.repeat(8, 0).repeat(8, 1)
    moving = np.stack([wide[:, 2 * i : 2 * i + size[1]] for i in range(frames)])
    return clips.Clip(name, moving, np.zeros(frames - 1, bool))


def footage(*found):
    return {span: [clips.windows([c], span) for c in found] for span in SPANS}


def take(mixture, count, workers=0):
    return list(islice(mixture.batches(DataLoader(mixture, batch_size=None, num_workers=workers)), count))


def same(one, other):
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, other))
