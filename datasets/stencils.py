"""Shapes of objects, as images of the signed distance to their outline; drawn, or cut out of photographs.

A stencil is uint8 (S, S): 128 + 4 times the distance in its own pixels, above 128 within the shape, clipped.
Unlike a plain mask, it can be enlarged, turned and softened without losing its edge.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from utils import io

from .textures import FONTS, words

OUTLINE, STEPS = 128, 4  # the value on the outline, and steps a pixel
SIDE = 160
FINE = 2  # shapes are drawn this many times larger
INNER = 0.42  # how far a shape reaches from the middle of its stencil, as a share of the side
SEGMENTATIONS = (".mat", ".png")
LEAST, MOST = 0.01, 0.4  # of a photograph's area: smaller segments are crumbs, larger ones are backgrounds
CUT = 0.15  # share of a segment's outline that may lie on the photograph's border: what is cut off is no object
PER_PHOTOGRAPH = 4
# What SciPy raises depends on where a file is damaged; NotImplementedError is for MATLAB's format 7.3.
DAMAGED = (LookupError, NameError, TypeError, ValueError, OSError, MemoryError, NotImplementedError, zlib.error)


class Stencils(NamedTuple):
    """distance: (P, S, S) uint8. kind: (P,) int64, its place in KINDS."""

    distance: Tensor
    kind: Tensor

    def numbers(self, *names: str) -> Tensor:
        """The numbers of the stencils of some kinds, (N,) int64."""
        wanted = torch.tensor([list(KINDS).index(name) for name in names], device=self.kind.device)
        return torch.isin(self.kind, wanted).nonzero()[:, 0]


class Cutouts(NamedTuple):
    """Objects out of photographs. picture: (P, S, S, 3) uint8; distance: (P, S, S) uint8, their stencils."""

    picture: Tensor
    distance: Tensor


def drawn_stencils(count: int = 512, side: int = SIDE, seed: int = 0) -> Stencils:
    """Random stencils of all kinds, each a function of its number and the seed."""
    distance = torch.empty(count, side, side, dtype=torch.uint8)
    kinds, draw = np.random.default_rng(seed).choice(len(KINDS), count, p=SHARES), list(KINDS.values())
    for number, kind in enumerate(kinds):
        canvas = np.zeros((FINE * side, FINE * side), np.uint8)
        draw[kind](np.random.default_rng((seed, number)), canvas)
        distance[number] = torch.from_numpy(signed_distance(canvas, side))
    return Stencils(distance, torch.from_numpy(kinds))


def signed_distance(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask (H, H), nonzero within the shape -> its stencil (side, side) uint8."""
    inside, outside = (cv2.distanceTransform(np.uint8(part), cv2.DIST_L2, 5) for part in (mask > 0, mask == 0))
    # The outline runs half-way between the last pixel inside and the first outside, which are 1 apart.
    distance = inside - outside
    distance = cv2.resize(distance - 0.5 * np.sign(distance), (side, side), interpolation=_down(mask, side))
    return (OUTLINE + STEPS * distance * (side / len(mask))).round().clip(0, 255).astype(np.uint8)


def _down(picture: np.ndarray, side: int) -> int:
    return cv2.INTER_AREA if len(picture) > side else cv2.INTER_LINEAR


# Drawn shapes: each fills a part of a black canvas (H, H).


def blob(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A closed curve, its radius a few harmonics of the angle."""
    cv2.fillPoly(canvas, [_outline(rng, canvas)], 255)


def polygon(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Three to seven corners, or a star."""
    corners = int(rng.integers(3, 8))
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False) + rng.uniform(-0.4, 0.4, corners)
    cv2.fillPoly(canvas, [_polar(canvas, angles, rng.uniform(rng.choice([0.3, 0.8]), 1, corners))], 255)


def cloud(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Patches with a ragged outline, some of them in pieces: foliage, smoke, hair."""
    side = len(canvas)
    rough = cv2.resize(rng.standard_normal((24, 24)), (side, side), interpolation=cv2.INTER_CUBIC)
    coarse = cv2.resize(rng.standard_normal((7, 7)), (side, side), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:side, :side] / side - 0.5
    radius = np.hypot(x, y) / INNER
    canvas[(coarse + rng.uniform(0.2, 0.7) * rough > 3 * radius**2 - 1) & (radius < 1)] = 255


def ring(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Only the outline of a blob."""
    cv2.polylines(canvas, [_outline(rng, canvas)], True, 255, _thickness(rng, 2, 24))


def bars(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Parallel bars: poles, railings, slats."""
    side, count, width = len(canvas), int(rng.integers(1, 8)), _thickness(rng, 3, 16)
    low, high = side / 2 - INNER * side, side / 2 + INNER * side
    for x in np.linspace(low, high, count + 2)[1:-1]:
        cv2.rectangle(canvas, (round(x), round(low)), (round(x) + width, round(high)), 255, -1)


def wires(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A few thin curves from border to border: ropes, cables."""
    side = len(canvas)
    x = np.linspace(-0.1, 1.1, 40)
    for _ in range(rng.integers(1, 4)):
        start, end, sag = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.normal(0, 0.3)
        wave = rng.choice([0, 0.05]) * np.sin(x * rng.uniform(5, 30) + rng.uniform(0, 6))
        y = start + (end - start) * x + sag * x * (1 - x) + wave
        cv2.polylines(canvas, [np.int32(side * np.stack([x, y], -1))], False, 255, _thickness(rng, 2, 8))


def lattice(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Crossing lines: fences, nets, window frames."""
    side, width = len(canvas), _thickness(rng, 2, 9)
    angle, opening = rng.uniform(0, math.pi), rng.choice([math.pi / 2, rng.uniform(0.8, 2.2)])
    step = rng.uniform(0.08, 0.3) * side
    for turn in (angle, angle + opening):
        along, across = np.array([math.cos(turn), math.sin(turn)]), np.array([-math.sin(turn), math.cos(turn)])
        for offset in np.arange(-side, side, step):
            middle = side / 2 + offset * across
            ends = (middle - side * along, middle + side * along)
            cv2.line(canvas, *(tuple(end.astype(int).tolist()) for end in ends), 255, width)


def twigs(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A stem that forks and thins: branches, hands, antlers."""
    side = len(canvas)

    def grow(foot: np.ndarray, angle: float, length: float, width: float) -> None:
        head = foot + length * np.array([math.cos(angle), math.sin(angle)])
        cv2.line(canvas, *(tuple(end.astype(int).tolist()) for end in (foot, head)), 255, max(round(width), 1))
        if length > 0.05 * side:
            for _ in range(rng.integers(2, 4)):
                grow(head, angle + rng.normal(0, 0.6), length * rng.uniform(0.5, 0.85), width * 0.65)

    grow(np.array([0.5, 0.95]) * side, -math.pi / 2 + rng.normal(0, 0.2), 0.22 * side, rng.uniform(4, 20))


def glyph(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """One or two large characters."""
    _write(rng, canvas, [words(rng, int(rng.integers(1, 3))).strip() or "R"], thickness=0.12)


def text(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """One to three lines of characters."""
    length = int(rng.integers(4, 16))
    _write(rng, canvas, [words(rng, length) for _ in range(rng.integers(1, 4))], thickness=0.1)


SOLID = (blob, polygon, cloud, glyph)
KINDS: dict[str, Callable] = {f.__name__: f for f in (*SOLID, ring, bars, wires, lattice, twigs, text)}
THIN = tuple(KINDS)[len(SOLID) :]  # nothing is left of these at small sizes
SHARES = (0.24, 0.14, 0.16, 0.06, 0.06, 0.06, 0.12, 0.04, 0.06, 0.06)  # of the drawn stencils


def _thickness(rng: np.random.Generator, low: float, high: float) -> int:
    """Log-uniform: as many thin lines as thick ones."""
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _polar(canvas: np.ndarray, angles: np.ndarray, radii: np.ndarray) -> np.ndarray:
    points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    return np.int32(len(canvas) * (0.5 + INNER * points / radii.max()))


def _outline(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    angles, orders = np.linspace(0, 2 * math.pi, 120, endpoint=False), np.arange(1, 6)
    ripples = np.cos(angles[:, None] * orders + rng.uniform(0, 2 * math.pi, 5))
    return _polar(canvas, angles, (1 + ripples @ (rng.normal(0, 0.25, 5) / orders)).clip(0.1))


def _write(rng: np.random.Generator, canvas: np.ndarray, lines: list[str], thickness: float) -> None:
    """Lines as large as the shape may be, one below the other, strokes of `thickness` of a line's height at most."""
    font, room = int(rng.choice(FONTS)), 2 * INNER * len(canvas)
    (width, height), base = cv2.getTextSize(max(lines, key=len), font, 1, 2)
    scale = min(room / width, room / (len(lines) * 1.3 * (height + base)))
    pen = max(round(scale * height * rng.uniform(0.04, thickness)), 2)
    left, step = round((len(canvas) - scale * width) / 2), 1.3 * scale * (height + base)
    top = (len(canvas) - len(lines) * step) / 2
    for row, line in enumerate(lines):
        cv2.putText(canvas, line, (left, round(top + row * step + 1.2 * scale * height)), font, scale, 255, pen)


# Shapes cut out of photographs


def cutouts(photographs: Sequence[Path], folder: Path, side: int, seed: int = 0) -> Cutouts:
    """The objects in photographs that have a segmentation: a file of the same name in `folder` or below.

    Segmentations are BSDS500's .mat files, or .png whose colours are the segments. Several per photograph (annotators)
    are used alike. FileNotFoundError without the folder; ValueError where there are no segmentations of these
    photographs, none of their segments can be used, or one has another size.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of segmentations")
    found = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SEGMENTATIONS}
    both = [(photo, found[photo.stem]) for photo in photographs if photo.stem in found]
    if not both:
        kinds = " or ".join(SEGMENTATIONS)
        raise ValueError(f"{folder}: no {kinds} file is named like one of the {len(photographs)} photographs")
    pairs = [pair for number, (photo, path) in enumerate(both) for pair in _objects(photo, path, side, (seed, number))]
    if not pairs:
        raise ValueError(f"{folder}: no segment in {len(both)} files is an object; leave --masks out")
    return Cutouts(*(torch.from_numpy(np.stack(part)) for part in zip(*pairs)))


def read_segmentations(path: Path) -> list[np.ndarray]:
    """The label images (H, W) of a file, one per annotator, whose segments are small whole numbers. ValueError where
    it is not a segmentation."""
    if path.suffix.lower() == ".png":
        picture = np.atleast_3d(io.read_unchanged(path)).astype(np.int64)
        return [_numbered(picture @ (1 << 16 * np.arange(picture.shape[2])[::-1]))]
    from scipy.io.matlab import MatReadError, loadmat  # scikit-image depends on it

    data = io.read_bytes(path)
    try:
        truth = loadmat(BytesIO(data))["groundTruth"]
        return [_numbered(np.asarray(truth[0, i]["Segmentation"][0, 0])) for i in range(truth.shape[1])]
    except (*DAMAGED, MatReadError) as error:
        what = "not a segmentation as BSDS500 has them, or damaged; copy it again, or save it in MATLAB's format 7"
        raise ValueError(f"{path}: {what}") from error


def _numbered(labels: np.ndarray) -> np.ndarray:
    """The same segments under small numbers, so that they can be counted."""
    if labels.dtype.kind == "u" and labels.size and labels.max() < 2**12:
        return labels
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _objects(photo: Path, path: Path, side: int, seed: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(picture, stencil) of up to PER_PHOTOGRAPH objects of one photograph."""
    picture, labels = io.read_image(photo), read_segmentations(path)
    for label in labels:
        if label.shape != picture.shape[:2]:
            sizes = f"{label.shape[1]}x{label.shape[0]}", f"{picture.shape[1]}x{picture.shape[0]}"
            raise ValueError(f"{path}: a segmentation of {sizes[0]} for {photo}, which is {sizes[1]}")
    masks = []
    for label in labels:
        areas = np.bincount(label.ravel()) / label.size
        masks += [label == number for number in np.flatnonzero((LEAST < areas) & (areas < MOST))]
    masks = [mask for mask in masks if _cut_off(mask) < CUT]
    order = np.random.default_rng(seed).permutation(len(masks))[:PER_PHOTOGRAPH]
    return [_cut_out(picture, masks[i], side) for i in order]


def _cut_off(mask: np.ndarray) -> float:
    """The share of a shape's outline that lies on the picture's border."""
    border = sum(map(np.count_nonzero, (mask[0], mask[-1], mask[:, 0], mask[:, -1])))
    inner = np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    return border / (border + inner)


def _cut_out(picture: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The square around a shape, its margin that of a drawn stencil, scaled to `side`."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    half = math.ceil(max(np.ptp(rows), np.ptp(columns)) / (4 * INNER)) + 2
    top, left = ((line[0] + line[-1]) // 2 - half for line in (rows, columns))
    ready = cv2.copyMakeBorder(picture, *(half,) * 4, cv2.BORDER_REFLECT_101)
    square = ready[top + half : top + 3 * half, left + half : left + 3 * half]
    shape = cv2.copyMakeBorder(np.uint8(mask), *(half,) * 4, cv2.BORDER_CONSTANT)
    shape = shape[top + half : top + 3 * half, left + half : left + 3 * half]
    return cv2.resize(square, (side, side), interpolation=_down(square, side)), signed_distance(shape, side)
