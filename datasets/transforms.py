"""Augmentation of a stack of frames: the dice (`roll`) apart from the geometry (a function per move; `apply` does all).

A stack is transformed as a whole: (frames, flow, t) -> (frames, flow, t). The dice depend on (seed, epoch, index)
alone, so that a sample looks the same whichever rank or worker reads it, and different in every epoch.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from utils.io import to_float

from . import Sample

DIVISOR = 16  # the network takes sides that are multiples of it


class Stack(NamedTuple):
    """frames: RGB uint8 (N, H, W, 3), the first at t = 0, the last at t = 1. flow: float32 (H, W, 4), t->0 dx, dy and
    t->1 dx, dy in pixels, or None. t: float32 (N - 2,), the times of the frames between."""

    frames: np.ndarray
    flow: np.ndarray | None
    t: np.ndarray

    def sample(self) -> Sample:
        """As the network takes it: float frames in [0, 1], flow that is NaN where there is none."""
        size = self.frames.shape[1:3]
        if self.flow is None:
            flow = torch.full((4, *size), torch.nan)
        else:
            flow = torch.from_numpy(np.ascontiguousarray(self.flow.transpose(2, 0, 1)))
        first, *between, last = to_float(self.frames)
        several = len(between) > 1
        t = torch.tensor(self.t, dtype=torch.float32)
        return Sample(first, torch.stack(between) if several else between[0], last, t if several else t[0], flow)


# The geometry for reference: training uses `take` and `finish` below, which are tested against this. Flow (dx, dy)
# follows its pixels, and its values follow the axes.


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


def centre_crop(stack: Stack, limit: int | None = None) -> Stack:
    """The middle of the frames: the largest sides that are multiples of DIVISOR, at most `limit`.

    ValueError where a side is below DIVISOR.
    """
    height, width = stack.frames.shape[1:3]
    inner = [min(side, limit or side) // DIVISOR * DIVISOR for side in (height, width)]
    if not all(inner):
        raise ValueError(f"frames of {width}x{height} are too small; {DIVISOR}x{DIVISOR} is the least")
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
    """What is to happen to one stack. top, left: corner of the crop, in pixels of the frames after `zoom`."""

    zoom: bool
    top: int
    left: int
    reverse_channels: bool
    flip_vertical: bool
    flip_horizontal: bool
    transpose: bool
    reverse_time: bool


def roll(rng: np.random.Generator, height: int, width: int, size: int) -> Dice:
    """Draw for frames of height x width to be cropped to size x size. ValueError where the crop does not fit."""
    chance = {name: bool(rng.random() < p) for name, p in PROBABILITIES.items()}
    factor = 1 + chance["zoom"]
    if min(height, width) < size:
        raise ValueError(f"frames of {width}x{height} hold no crop of {size}x{size}; give a smaller --crop")
    top, left = (int(rng.integers(side * factor - size + 1)) for side in (height, width))
    return Dice(top=top, left=left, **chance)


def apply(stack: Stack, dice: Dice, size: int) -> Stack:
    """Apply the moves that the dice chose, in the paper's order."""
    if dice.zoom:
        stack = zoom(stack)
    stack = crop(stack, dice.top, dice.left, size, size)
    for move in (reverse_channels, flip_vertical, flip_horizontal, transpose, reverse_time):
        if getattr(dice, move.__name__):
            stack = move(stack)
    return stack


# The same on the device: readers copy only the pixels that a sample needs, and a batch is transformed at once.

FLOW_STEPS, FLOW_UNKNOWN = 64, -(2**15)  # flow as int16: 1/64 of a pixel; no flow


class Raw(NamedTuple):
    """What is read of a stack, and what is to happen to it. The default collate makes batches of them.

    frames: uint8 (N, S, S, 3), the crop; where it is to be zoomed, the part that it is made of, in the corner. flow:
    (S, S, 4), float32 in pixels or int16 in steps of 1/64; (0,) for none. t: (N - 2,). dice: int64, as Dice, but top
    and left count from that corner.
    """

    frames: torch.Tensor
    flow: torch.Tensor
    t: torch.Tensor
    dice: torch.Tensor


def source(start: int, zoomed: bool, side: int, size: int) -> tuple[np.ndarray | slice, int]:
    """Which rows (or columns) of a frame a crop that starts at `start` takes, and where it starts among them.

    Zoomed: half as many, and one more at either end, which bilinear sampling reads; the outermost is repeated.
    """
    if not zoomed:
        return slice(start, start + size), 0
    first = start // 2 - 1
    return np.clip(np.arange(first, first + (size + 1) // 2 + 2), 0, side - 1), start - 2 * first


def lines(start: int, zoomed: bool, side: int, size: int) -> tuple[np.ndarray, int]:
    """The same, always as (size,) indices for gathering; where fewer are needed the others are 0."""
    line, first = source(start, zoomed, side, size)
    line, result = np.arange(side)[line], np.zeros(size, np.int64)
    result[: len(line)] = line
    return result, first


class Augment:
    """The recipe's augmentation of sample `index` in `epoch`: a stack becomes Raw, from which `finish` makes Samples of
    size x size, a batch at a time and on any device, as `apply` would. Only the pixels that a crop needs are read. The
    stack's frames may be a list, its flow a FlowPair."""

    def __init__(self, size: int, seed: int = 0):
        self.size, self.seed = size, seed

    def dice(self, index: int, epoch: int, height: int, width: int) -> Dice:
        return roll(np.random.default_rng((self.seed, epoch, index)), height, width, self.size)

    def __call__(self, stack: Stack, index: int, epoch: int) -> Raw:
        return take(stack, self.dice(index, epoch, *stack.frames[0].shape[:2]), self.size)

    def copy(self, stack: Stack, index: int, epoch: int, frames: np.ndarray, flow: np.ndarray | None) -> Dice:
        """Copy the pixels that the sample needs into `frames` (N, S, S, 3) and `flow` (S, S, 4); the dice of Raw."""
        return _copy_to(frames, flow, stack, self.dice(index, epoch, *stack.frames[0].shape[:2]))


def take(stack: Stack, dice: Dice, size: int) -> Raw:
    """What a crop of size x size needs of a stack, whose frames may be a list and its flow a FlowPair."""
    frames, flow = np.empty((len(stack.frames), size, size, 3), np.uint8), np.empty((0,), np.float32)
    if stack.flow is not None:
        flow = np.empty((size, size, 4), stack.flow.dtype)
    dice = _copy_to(frames, None if stack.flow is None else flow, stack, dice)
    return Raw(*map(torch.from_numpy, (frames, flow, np.float32(stack.t))), torch.tensor(dice, dtype=torch.int64))


def _copy_to(frames: np.ndarray, flow: np.ndarray | None, stack: Stack, dice: Dice) -> Dice:
    (height, width), size = stack.frames[0].shape[:2], frames.shape[1]
    rows, top = source(dice.top, dice.zoom, height, size)
    columns, left = source(dice.left, dice.zoom, width, size)
    for target, frame in zip(frames, stack.frames):
        _copy(target, frame, rows, columns)
    if isinstance(stack.flow, FlowPair):
        for k, one in enumerate(stack.flow):
            _copy(flow[..., 2 * k : 2 * k + 2], one, rows, columns)
    elif flow is not None:
        _copy(flow, stack.flow, rows, columns)
    return dice._replace(top=top, left=left)


class FlowPair(NamedTuple):
    """Flow t->0 and t->1, (H, W, 2) each, in place of Stack's (H, W, 4): joined after the crop, which is faster."""

    first: np.ndarray
    second: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        return self.first.dtype


def _copy(target: np.ndarray, frame: np.ndarray, rows, columns) -> None:
    part = frame[rows][:, columns]
    target[: part.shape[0], : part.shape[1]] = part


def finish(raw: Raw, device: torch.device) -> Sample:
    """A batch of Raw, on the CPU or on the device -> the batch of Samples, on the device, as `apply` would make them.

    Raw that is on the device already is overwritten: its frames and flow are zoomed in place.
    The dice should be on the CPU: what is to be zoomed is then known without waiting for the device.
    """
    dice = Dice(*raw.dice.unbind(1))
    frames, flow, t = (x.to(device, non_blocking=True) for x in raw[:3])
    flow = _decode(flow) if flow.ndim == 4 else None
    zoomed = dice.zoom.nonzero()[:, 0].tolist()
    for i in zoomed:
        corner = int(dice.top[i]), int(dice.left[i])
        planes = _zoom(frames[i].permute(0, 3, 1, 2).float(), corner)
        frames[i] = (planes + 0.5).floor().to(torch.uint8).permute(0, 2, 3, 1)
        if flow is not None:
            flow[i] = 2 * _zoom(flow[i].permute(2, 0, 1)[None], corner)[0].permute(1, 2, 0)

    dice = Dice(*raw.dice.to(device, non_blocking=True).unbind(1))
    batch, number, size = frames.shape[:3]
    b = torch.arange(batch, device=device)
    line = torch.arange(size, device=device)
    rows, columns = (
        torch.where(flip[:, None] > 0, size - 1 - line, line) for flip in (dice.flip_vertical, dice.flip_horizontal)
    )
    turned = (dice.transpose > 0)[:, None, None]
    y, x = (torch.where(turned, axis[:, None, :], axis[:, :, None]) for axis in (rows, columns))
    y, x = y.expand(-1, size, size), torch.where(turned, columns[:, :, None], columns[:, None, :])
    k = torch.arange(number, device=device)
    k = torch.where(dice.reverse_time[:, None] > 0, number - 1 - k, k)
    c = torch.arange(3, device=device)
    c = torch.where(dice.reverse_channels[:, None] > 0, 2 - c, c)
    picked = frames[
        b.view(-1, 1, 1, 1, 1), k[:, :, None, None, None], y[:, None, None], x[:, None, None], c[:, None, :, None, None]
    ]
    picked = picked.float() / 255
    between = picked[:, 1:-1] if number > 3 else picked[:, 1]
    t = torch.where(dice.reverse_time[:, None] > 0, 1 - t.flip(1), t)
    return Sample(
        picked[:, 0],
        between,
        picked[:, -1],
        t if number > 3 else t[:, 0],
        torch.full((batch, 4, size, size), torch.nan, device=device) if flow is None else _turn(flow, dice, b, y, x),
    )


def _zoom(x: torch.Tensor, corner: tuple[int, int]) -> torch.Tensor:
    """(N, C, S, S) whose corner holds what is to be zoomed -> (N, C, S, S)."""
    size = x.shape[-1]
    part = (size + 1) // 2 + 2
    twice = F.interpolate(x[..., :part, :part], scale_factor=2, mode="bilinear", align_corners=False)
    return twice[..., corner[0] : corner[0] + size, corner[1] : corner[1] + size]


def _turn(flow: torch.Tensor, dice: Dice, b: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Flow (B, S, S, 4) at the pixels y, x (B, S, S), its values turned as the axes are: (B, 4, S, S)."""
    sign = torch.stack([1 - 2 * dice.flip_horizontal, 1 - 2 * dice.flip_vertical] * 2, 1)
    # Transposing swaps dx and dy (bit 0 of the channel), reversing time swaps the two flows (bit 1).
    channel = torch.arange(4, device=flow.device) ^ (dice.transpose + 2 * dice.reverse_time)[:, None]
    picked = flow[b.view(-1, 1, 1, 1), y[:, None], x[:, None], channel[:, :, None, None]]
    return picked * sign.gather(1, channel)[:, :, None, None]


def _decode(flow: torch.Tensor) -> torch.Tensor:
    if flow.dtype != torch.int16:
        return flow
    return (flow.float() / FLOW_STEPS).masked_fill_(flow == FLOW_UNKNOWN, torch.nan)
