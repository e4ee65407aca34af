"""Textures that are made, not photographed: noise, gradients, repeated patterns, overlapping shapes, writing.

A texture is a patch as photographs are kept in (synthetic.photo_patches), RGB uint8 (S, S, 3). Most are a field, one
value a pixel in [0, 1], painted with a random palette; what repeats has a random scale and angle, because it is easily
matched with the wrong place.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

FONTS = tuple(range(8))  # OpenCV's Hershey fonts
CHARACTERS = "".join(chr(code) for code in range(33, 127)) + 16 * " "


def procedural_patches(count: int, side: int, seed: int = 0) -> Tensor:
    """`count` textures, each a function of its number and the seed: (count, side, side, 3) uint8."""
    patches = torch.empty(count, side, side, 3, dtype=torch.uint8)
    for number in range(count):
        patches[number] = torch.from_numpy(texture(np.random.default_rng((seed, number)), side))
    return patches


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """One texture, RGB uint8 (side, side, 3)."""
    picture = _layer(rng, side)
    if rng.random() < 0.3:  # two of them, divided by a smooth border
        picture = np.where(_step(_smooth(rng, side) - 0.5, side)[..., None] > 0.5, picture, _layer(rng, side))
    light = 1 + rng.uniform(0, 0.5) * (_smooth(rng, side) - 0.5)
    grain = rng.uniform(0, 0.02) * rng.standard_normal((side, side, 1), np.float32)
    return ((picture * light[..., None] + grain) * 255).round().clip(0, 255).astype(np.uint8)


def _layer(rng: np.random.Generator, side: int) -> np.ndarray:
    kind = KINDS[rng.choice(len(KINDS), p=SHARES)]
    return kind(rng, side)


# Colours


def colour(rng: np.random.Generator) -> np.ndarray:
    """A colour (3,) in [0, 1]: mostly muted, seldom bright."""
    grey, tint = rng.beta(1.3, 1.3), rng.standard_normal(3)
    return (grey + 0.25 * rng.beta(1, 2) * (tint - tint.mean())).clip(0, 1)


def paint(rng: np.random.Generator, field: np.ndarray, colours: int | None = None) -> np.ndarray:
    """A field (S, S) in [0, 1] -> (S, S, 3): a ramp through two to five random colours."""
    colours = colours or int(rng.integers(2, 6))
    stops = np.sort(rng.random(colours))
    stops[[0, -1]] = 0, 1
    palette = np.stack([colour(rng) for _ in range(colours)])
    table = np.stack([np.interp(np.linspace(0, 1, 1024), stops, channel) for channel in palette.T], -1)
    return table.astype(np.float32)[(field * 1023).astype(np.intp)]


# Fields, (S, S) in [0, 1]


def _noise(rng: np.random.Generator, side: int, slope: float | None = None) -> np.ndarray:
    """Fractal noise: amplitudes fall with frequency to the power of -slope; about 1 for photographs, more is smooth."""
    slope = rng.uniform(0.7, 2.2) if slope is None else slope
    stretch = math.exp(rng.normal(0, 0.4))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None] * stretch, np.fft.rfftfreq(side)[None] / stretch)
    frequency[0, 0] = np.inf
    spectrum = frequency**-slope * np.exp(2j * math.pi * rng.random(frequency.shape))
    field = np.fft.irfft2(spectrum, (side, side))
    return (0.5 + field / (4 * field.std())).clip(0, 1).astype(np.float32)


def _smooth(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise without detail."""
    return cv2.resize(_noise(rng, side // 4, 1.8), (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _axes(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates (S, S) of every pixel on turned axes, in pixels, sometimes bent."""
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2).astype(np.float32)
    angle = rng.choice([0, rng.uniform(0, math.pi)])
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    if rng.random() < 0.3:
        bend = rng.uniform(0, 0.15) * side
        u, v = u + bend * _smooth(rng, side), v + bend * _smooth(rng, side)
    return u, v


def _step(distance: np.ndarray, sharpness: float) -> np.ndarray:
    """0 to 1 where the distance goes through 0, within 1 / sharpness of it."""
    return (0.5 + distance * sharpness).clip(0, 1)


def _ramp(rng: np.random.Generator, side: int) -> np.ndarray:
    u, v = _axes(rng, side)
    field = np.hypot(u, v) if rng.random() < 0.3 else u
    return (field - field.min()) / np.ptp(field)


def _pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    """Stripes, checks, a grid or dots, 4 to 60 pixels apart."""
    u, v = _axes(rng, side)
    period = math.exp(rng.uniform(math.log(4), math.log(60)))
    u, v = u / period, v / (period * rng.choice([1, rng.uniform(0.5, 2)]))
    du, dv = (np.abs(w - np.floor(w) - 0.5) for w in (u, v))  # from the middle of a cell: 0 to 1/2
    share = rng.uniform(0.1, 0.4)
    distance = (
        lambda: du - share,
        lambda: (du - 0.25) * (dv - 0.25) * 4,
        lambda: np.maximum(du, dv) - 0.5 + share / 2,
        lambda: np.hypot(du, dv) - share,
        lambda: 0.5 * np.sin(2 * math.pi * u),
    )[rng.integers(5)]()
    return _step(distance, max(period / rng.uniform(1, 4), 2))


# Pictures, (S, S, 3) in [0, 1]


def fractal(rng: np.random.Generator, side: int) -> np.ndarray:
    return paint(rng, _noise(rng, side))


def gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    return paint(rng, _ramp(rng, side), 2)


def flat(rng: np.random.Generator, side: int) -> np.ndarray:
    return np.broadcast_to(colour(rng), (side, side, 3))


def repeated(rng: np.random.Generator, side: int) -> np.ndarray:
    """A pattern whose two colours are themselves smooth pictures."""
    mix = _pattern(rng, side)[..., None]
    one, other = (paint(rng, _smooth(rng, side), 2) for _ in range(2))
    return one + mix * (other - one)


def shapes(rng: np.random.Generator, side: int) -> np.ndarray:
    """Shapes over shapes, many small, few large ones: the dead leaves model of photographs."""
    picture = (fractal(rng, side) * 255).astype(np.uint8)
    for _ in range(int(rng.integers(60, 250))):
        size = min(4 * rng.random() ** -0.7, side / 3)
        centre = rng.uniform(0, side, 2)
        turn = rng.uniform(0, 2 * math.pi)
        corners = 40 if rng.random() < 0.4 else int(rng.integers(3, 8))
        angles = turn + np.linspace(0, 2 * math.pi, corners, endpoint=False)
        radii = size * rng.uniform(0.4, 1.2, 2)
        points = centre + radii * np.stack([np.cos(angles), np.sin(angles)], -1)
        cv2.fillPoly(picture, [np.int32(points * 8)], (colour(rng) * 255).tolist(), cv2.LINE_AA, 3)
    return picture.astype(np.float32) / 255


def writing(rng: np.random.Generator, side: int) -> np.ndarray:
    """Lines of letters, turned by a random angle."""
    picture = (paint(rng, _smooth(rng, side), 2) * 255).astype(np.uint8)
    scale = math.exp(rng.uniform(math.log(0.3), math.log(1.5)))
    font, ink, width = int(rng.choice(FONTS)), (colour(rng) * 255).tolist(), max(round(scale * rng.uniform(1, 3)), 1)
    for base in np.arange(0, 1.5 * side, scale * rng.uniform(26, 50)):
        cv2.putText(picture, words(rng, 60), (-5, int(base)), font, scale, ink, width, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.choice([0, rng.uniform(-90, 90)]), 1)
    return cv2.warpAffine(picture, turn, (side, side), borderMode=cv2.BORDER_REFLECT).astype(np.float32) / 255


def words(rng: np.random.Generator, length: int) -> str:
    """Random characters, with blanks between."""
    return "".join(CHARACTERS[i] for i in rng.integers(len(CHARACTERS), size=length))


KINDS: tuple[Callable, ...] = (fractal, gradient, flat, repeated, shapes, writing)
SHARES = (0.25, 0.05, 0.05, 0.25, 0.3, 0.1)
