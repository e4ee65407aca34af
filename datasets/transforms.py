"""Augmentation of a stack of frames: the dice (`roll`) apart from the geometry (one function a move; `apply` is all).

A stack goes through as one: (frames, flow, t) -> (frames, flow, t). The dice come from (seed, epoch, index) alone, so
that a sample looks the same whichever rank or worker reads it, and another way in every epoch.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch

from utils.io import to_float

from . import Sample


class Stack(NamedTuple):
    """frames: RGB uint8 (N, H, W, 3), the first at t = 0, the last at t = 1. flow: float32 (H, W, 4), t->0 dx, dy and
    t->1 dx, dy in pixels, or None. t: float32 (N - 2,), the times of the frames between."""

    frames: np.ndarray
    flow: np.ndarray | None
    t: np.ndarray

    def sample(self) -> Sample:
        """As the network takes it: float frames in [0, 1], flow that is NaN where there is none."""
        size = self.frames.shape[1:3]
        flow = torch.full((4, *size), torch.nan) if self.flow is None else torch.from_numpy(_planes(self.flow))
        first, *between, last = to_float(self.frames)
        several = len(between) > 1
        t = torch.tensor(self.t, dtype=torch.float32)
        return Sample(first, torch.stack(between) if several else between[0], last, t if several else t[0], flow)


def _planes(flow: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(flow.transpose(2, 0, 1))


# The geometry. Flow (dx, dy) follows its pixels, and its values follow the axes.


def zoom(stack: Stack) -> Stack:
    """Twice the size, bilinear; flow values double."""
    frames = np.stack([cv2.resize(frame, None, fx=2, fy=2) for frame in stack.frames])
    return stack._replace(frames=frames, flow=_each(stack.flow, lambda flow: 2 * cv2.resize(flow, None, fx=2, fy=2)))


def crop(stack: Stack, top: int, left: int, height: int, width: int) -> Stack:
    rows, columns = slice(top, top + height), slice(left, left + width)
    return stack._replace(
        frames=stack.frames[:, rows, columns], flow=_each(stack.flow, lambda flow: flow[rows, columns])
    )


def reverse_channels(stack: Stack) -> Stack:
    return stack._replace(frames=stack.frames[..., ::-1])


def flip_vertical(stack: Stack) -> Stack:
    return stack._replace(
        frames=stack.frames[:, ::-1], flow=_each(stack.flow, lambda flow: flow[::-1] * np.float32([1, -1, 1, -1]))
    )


def flip_horizontal(stack: Stack) -> Stack:
    return stack._replace(
        frames=stack.frames[:, :, ::-1], flow=_each(stack.flow, lambda flow: flow[:, ::-1] * np.float32([-1, 1, -1, 1]))
    )


def transpose(stack: Stack) -> Stack:
    """Rows become columns, and dx becomes dy."""
    return stack._replace(
        frames=stack.frames.transpose(0, 2, 1, 3),
        flow=_each(stack.flow, lambda flow: flow.transpose(1, 0, 2)[..., [1, 0, 3, 2]]),
    )


def reverse_time(stack: Stack) -> Stack:
    """The last frame first: t becomes 1 - t, and the two flows change places."""
    return Stack(stack.frames[::-1], _each(stack.flow, lambda flow: flow[..., [2, 3, 0, 1]]), 1 - stack.t[::-1])


def centre_crop(stack: Stack, divisor: int = 16, limit: int | None = None) -> Stack:
    """The middle of the frames: the largest sides that are multiples of `divisor`, `limit` at most.

    ValueError where the frames are smaller than that.
    """
    height, width = stack.frames.shape[1:3]
    inner = [min(side, limit or side) // divisor * divisor for side in (height, width)]
    if not all(inner):
        raise ValueError(f"frames of {width}x{height} are too small; {divisor}x{divisor} is the least")
    return crop(stack, (height - inner[0]) // 2, (width - inner[1]) // 2, *inner)


def _each(flow, move):
    return None if flow is None else move(flow)


# The dice.

PROBABILITIES = {  # the paper's
    "zoom": 0.1,
    "reverse_channels": 0.5,
    "flip_vertical": 0.3,
    "flip_horizontal": 0.5,
    "transpose": 0.05,
    "reverse_time": 0.5,
}


class Dice(NamedTuple):
    """What shall happen to one stack. top, left: corner of the crop, in pixels of the frames after `zoom`."""

    zoom: bool
    top: int
    left: int
    reverse_channels: bool
    flip_vertical: bool
    flip_horizontal: bool
    transpose: bool
    reverse_time: bool


def roll(rng: np.random.Generator, height: int, width: int, size: int) -> Dice:
    """Draw for frames of height x width to be cropped to size x size. ValueError where it does not hold the crop."""
    chance = {name: bool(rng.random() < p) for name, p in PROBABILITIES.items()}
    factor = 1 + chance["zoom"]
    if min(height, width) < size:
        raise ValueError(f"frames of {width}x{height} hold no crop of {size}x{size}; give a smaller --crop")
    top, left = (int(rng.integers(side * factor - size + 1)) for side in (height, width))
    return Dice(top=top, left=left, **chance)


def apply(stack: Stack, dice: Dice, size: int) -> Stack:
    """The moves that the dice say, in the paper's order."""
    if dice.zoom:
        stack = zoom(stack)
    stack = crop(stack, dice.top, dice.left, size, size)
    for move in (reverse_channels, flip_vertical, flip_horizontal, transpose, reverse_time):
        if getattr(dice, move.__name__):
            stack = move(stack)
    return stack


class Augment:
    """The recipe's augmentation of sample `index` in `epoch`: stack -> stack of size x size."""

    def __init__(self, size: int, seed: int = 0):
        self.size, self.seed = size, seed

    def dice(self, index: int, epoch: int, height: int, width: int) -> Dice:
        return roll(np.random.default_rng((self.seed, epoch, index)), height, width, self.size)

    def __call__(self, stack: Stack, index: int, epoch: int) -> Stack:
        return apply(stack, self.dice(index, epoch, *stack.frames.shape[1:3]), self.size)
