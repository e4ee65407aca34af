"""Scenes: layers in motion, drawn at any time, with the exact optical flow. synthetic.py makes them at random.

A scene is a background and objects in front of it, each with its own motion and wobble, all under one camera motion.

Conventions: p is a pixel of the frame and q a point of a layer's own plane, both (x, y) in pixels from the frame's
centre. At time tau a layer shows at p its point q = y + s(tau) D(y), where y = M(tau)^-1 p, M is a homography and D the
wobble; s(tau) runs from about -1/2 to 1/2 and is 0 half-way, where the layer lies at rest. Flow (dx, dy) is in pixels.
Sizes: B scenes, n of them with the layer in question, T times, N = H * W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .stencils import INNER, OUTLINE


class Motion(NamedTuple):
    """The motion of n planes from t = 0 to 1."""

    shift: Tensor  # (n, 2) pixels
    rotation: Tensor  # (n,) radians
    zoom: Tensor  # (n,) logarithm of the factor
    perspective: Tensor  # (n, 2) per pixel
    pivot: Tensor  # (n, 2) pixels: the centre of rotation and zoom, which the shift carries along
    acceleration: Tensor  # (n,): 0 is even motion

    def progress(self, tau: Tensor) -> Tensor:
        """s(tau), (n, T): 0 at one half, s(1) - s(0) = 1. tau: (n, T)."""
        bend = self.acceleration[:, None]
        return tau + bend * (tau**2 - tau) - (0.5 - 0.25 * bend)

    def matrix(self, tau: Tensor) -> Tensor:
        """The homography from the plane at rest to the frame at tau (n, T): (n, T, 3, 3)."""
        s = self.progress(tau)
        factor, angle = torch.exp(self.zoom[:, None] * s), self.rotation[:, None] * s
        a, b = factor * angle.cos(), factor * angle.sin()
        (px, py), (gx, gy), (tx, ty) = (
            self.pivot[:, None].unbind(-1),
            *((x[:, None] * s[..., None]).unbind(-1) for x in (self.perspective, self.shift)),
        )
        rows = [a, -b, px - a * px + b * py + tx, b, a, py - b * px - a * py + ty, gx, gy, torch.ones_like(s)]
        return torch.stack(rows, -1).unflatten(-1, (3, 3))


class Waves(NamedTuple):
    """The wobble of n planes, D(y) = sum of `amplitude` sin(`frequency` y + `offset`)."""

    amplitude: Tensor  # (n, 2, W) pixels
    frequency: Tensor  # (n, W, 2) radians a pixel
    offset: Tensor  # (n, W)

    def at(self, y: Tensor) -> Tensor:
        """D(y). y: (n, T, 2, N)."""
        return self.amplitude[:, None] @ torch.sin(self.frequency[:, None] @ y + self.offset[:, None, :, None])


class Layer(NamedTuple):
    """One layer of n scenes. `view` and `place` map q to a picture that spans -1 to 1."""

    texture: Tensor  # (n, 3, S, S) uint8
    view: Tensor  # (n, 2, 3)
    gain: Tensor  # (n, 3), a factor on the texture's colours
    motion: Motion
    waves: Waves | None  # None: rigid
    stencil: Tensor | None = None  # (n, M, M) uint8; None: the background, which is everywhere
    place: Tensor | None = None  # (n, 2, 3)
    sharpness: Tensor | None = None  # (n,), logit of the opacity per step of the stencil


class Scene(NamedTuple):
    """A batch of B scenes: all that is random about them.

    layers: back to front. Scenes with more layers come first, so that a layer is there in the first n of them.
    """

    layers: tuple[Layer, ...]
    camera: Motion
    size: tuple[int, int]


class View(NamedTuple):
    """What is needed to draw scenes at times (B, T): for each layer q (n, T, 2, N) and the opacity there (n, T, N)."""

    times: Tensor
    q: list[Tensor]
    alpha: list[Tensor | None]

    def at(self, k: int) -> "View":
        """The k-th time alone."""
        part = slice(k, k + 1)
        return View(
            self.times[:, part], [q[:, part] for q in self.q], [a if a is None else a[:, part] for a in self.alpha]
        )


def pixels(size: tuple[int, int], device: torch.device) -> Tensor:
    """All pixels of a frame of (height, width) from its centre, (2, N)."""
    y, x = (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y]).flatten(1)


def project(matrix: Tensor, p: Tensor) -> Tensor:
    """Points p (.., 2, N) under homographies (.., 3, 3)."""
    q = matrix[..., :2] @ p + matrix[..., 2:]
    return q[..., :2, :] / q[..., 2:, :]


def inverse(matrix: Tensor) -> Tensor:
    """The inverse homography: the adjugate, as a factor does not matter. matrix: (.., 3, 3)."""
    a, b, c = matrix.unbind(-1)
    return torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -2)


def homographies(scene: Scene, times: Tensor) -> list[Tensor]:
    """M(tau) of every layer at times (B, T): (n, T, 3, 3) each. All at once: each is little work."""
    counts = [len(layer.gain) for layer in scene.layers]
    motions = Motion(*map(torch.cat, zip(scene.camera, *(layer.motion for layer in scene.layers))))
    matrices = motions.matrix(torch.cat([times, *(times[:n] for n in counts)]))
    camera, *own = matrices.split([len(times), *counts])
    return [camera[: len(matrix)] @ matrix for matrix in own]


def to_layer(layer: Layer, matrix: Tensor, tau: Tensor, p: Tensor) -> Tensor:
    """The points q of a layer that are at the pixels p (2, N) at tau (n, T), where `matrix` is M: (n, T, 2, N)."""
    y = project(inverse(matrix), p)
    if layer.waves is None:
        return y
    return y + layer.motion.progress(tau)[..., None, None] * layer.waves.at(y)


def from_layer(layer: Layer, matrix: Tensor, tau: Tensor, q: Tensor) -> Tensor:
    """Where the points q (n, T, 2, N) of a layer are at tau (n, T): the inverse of `to_layer`."""
    y = q
    if layer.waves is not None:
        s = layer.motion.progress(tau)[..., None, None]
        for _ in range(4):  # a contraction: s times the wobble's slope is below 0.1, the error falls under 1e-3 pixels
            y = q - s * layer.waves.at(y)
    return project(matrix, y)


def read(pictures: Tensor, chart: Tensor, q: Tensor, padding: str) -> Tensor:
    """Pictures (n, C, S, S) at points q (n, T, 2, N), which chart (n, 2, 3) maps to -1..1: (n, C, T, N)."""
    grid = q.movedim(-2, -1) @ chart[:, None, :, :2].mT + chart[:, None, None, :, 2]
    return F.grid_sample(pictures, grid, padding_mode=padding, align_corners=False)


def opacity(layer: Layer, q: Tensor) -> Tensor:
    """The layer's opacity at q (n, T, 2, N), in [0, 1]: (n, T, N)."""
    distance = read(layer.stencil[:, None].float(), layer.place, q, "border")[:, 0] - OUTLINE
    return torch.sigmoid(distance * layer.sharpness[:, None, None])


def colours(layer: Layer, q: Tensor) -> Tensor:
    """The layer's texture at q (n, T, 2, N): (n, 3, T, N) in [0, 1]."""
    texture = layer.texture * (layer.gain / 255)[..., None, None]
    # Beyond its border the picture continues as its mirror image.
    return read(texture, layer.view, q, "reflection").clamp_(0, 1)


def view_at(scene: Scene, times: Tensor) -> View:
    """The scenes as they lie at times (B, T)."""
    p, matrices = pixels(scene.size, times.device), homographies(scene, times)
    q = [to_layer(layer, matrix, times[: len(matrix)], p) for layer, matrix in zip(scene.layers, matrices)]
    return View(times, q, [None if layer.stencil is None else opacity(layer, x) for layer, x in zip(scene.layers, q)])


def frame_of(scene: Scene, view: View) -> Tensor:
    """The frames (B, T, 3, H, W) in [0, 1], layers composed back to front."""
    frame = colours(scene.layers[0], view.q[0])
    for layer, q, alpha in zip(scene.layers[1:], view.q[1:], view.alpha[1:]):
        frame[: len(q)].lerp_(colours(layer, q), alpha[:, None])
    return frame.movedim(1, 2).unflatten(-1, scene.size)


def flow_of(scene: Scene, view: View) -> Tensor:
    """The flow tau->0 and tau->1 of the layer that is seen at each pixel, (B, T, 4, H, W) in pixels."""
    p, flow = pixels(scene.size, view.times.device), None
    ends = [torch.full_like(view.times, end) for end in (0.0, 1.0)]
    for layer, q, alpha, *matrices in zip(
        scene.layers, view.q, view.alpha, *(homographies(scene, end) for end in ends)
    ):
        n = len(q)
        own = torch.cat([from_layer(layer, m, end[:n], q) - p for m, end in zip(matrices, ends)], 2)
        flow = own if flow is None else torch.cat([own.where(alpha[:, :, None] > 0.5, flow[:n]), flow[n:]])
    return flow.unflatten(-1, scene.size)


def chart(centre: Tensor, turn: Tensor, scale: Tensor) -> Tensor:
    """(n, 2, 3): maps points to -1..1; a picture with its middle at `centre` (n, 2), `scale` (n, 2) pixels from there
    to its sides, turned by `turn` (n,)."""
    a, b = turn.cos(), turn.sin()
    matrix = torch.stack([a, b, -b, a], -1).unflatten(-1, (2, 2)) / scale[..., None]
    return torch.cat([matrix, -matrix @ centre[..., None]], -1)


def stencil_chart(centre: Tensor, turn: Tensor, radius: Tensor) -> Tensor:
    """The chart on which a stencil's shape, turned by `turn` (n,), reaches `radius` (n, 2) pixels from `centre`."""
    return chart(centre, turn, radius / (2 * INNER))
