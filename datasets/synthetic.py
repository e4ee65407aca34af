"""Photographs in procedural motion, with the exact optical flow: training data that needs no download.

A scene is a background photograph and up to `layers` textured objects with soft masks in front of it. Each layer moves
on its own path (translation, rotation, zoom about a pivot, perspective, a smooth non-rigid wobble, acceleration), all
of them under one camera motion. Everything is batched torch code and runs where the photographs lie, CPU or GPU.

Conventions: p is a pixel of the frame and q a point of a layer's own plane, both (x, y) in pixels from the frame's
centre. At time tau a layer shows at p its point q = y + s(tau) D(y), where y = M(tau)^-1 p, M is a homography and D the
wobble; s(tau) runs from about -1/2 to 1/2 and is 0 half-way, where the layer lies at rest. Flow (dx, dy) is in pixels.

    python -m datasets.synthetic --out data/vimeo_triplet_demo
    python -m datasets.synthetic --out data/mine --images FOLDER --train 500 --test 50
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import Sample
from utils import cli, io

# Those of scikit-image's photographs that are in the public domain or CC0 and lie inside the package.
PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "clock", "coffee", "grass", "gravel", "hubble_deep_field", "retina",
    "rocket", "text",
)  # fmt: skip
WINDOW = 384  # photographs are kept as square windows of this side
HARMONICS = 4  # of a blob's outline
WAVES = 3  # of the wobble
BLOB, BARS, NOISE = range(3)  # the kinds of masks


class Scene(NamedTuple):
    """A batch of B scenes of K layers, layer 0 the background; all that is random about them.

    texture: (B, K, S, S, 3) uint8; view: (B, K, 2, 2), from q to pixels of the texture from its centre.
    gain: (B, K, 3), a factor on the texture's colours. shown: (B, K), whether the layer is there.
    kind, centre (.., 2), radius (.., 2), turn, harmonics (.., H), phases (.., H), soft, noise (.., 8, 8): the mask.
    shift (.., 2), rotation, zoom (log), perspective (.., 2), pivot (.., 2): the motion from t = 0 to 1.
    acceleration (B, K). camera: the same motion tuple for everything, with K = 1.
    wobble: amplitude (B, K, W, 2) in pixels; frequency (B, K, W, 2) in radians a pixel; offset (B, K, W).
    """

    texture: Tensor
    view: Tensor
    gain: Tensor
    shown: Tensor
    kind: Tensor
    centre: Tensor
    radius: Tensor
    turn: Tensor
    harmonics: Tensor
    phases: Tensor
    soft: Tensor
    noise: Tensor
    motion: "Motion"
    camera: "Motion"
    amplitude: Tensor
    frequency: Tensor
    offset: Tensor
    size: tuple[int, int]


class Motion(NamedTuple):
    shift: Tensor  # (B, K, 2) pixels
    rotation: Tensor  # (B, K) radians
    zoom: Tensor  # (B, K) logarithm of the factor
    perspective: Tensor  # (B, K, 2) per pixel
    pivot: Tensor  # (B, K, 2) pixels
    acceleration: Tensor  # (B, K): 0 is even motion

    def progress(self, tau: Tensor) -> Tensor:
        """s(tau), (B, K): 0 at one half, s(1) - s(0) = 1. tau: (B,)."""
        tau = tau[:, None]
        return tau + self.acceleration * (tau**2 - tau) - (0.5 - 0.25 * self.acceleration)

    def matrix(self, tau: Tensor) -> Tensor:
        """The homography from the plane at rest to the frame at tau, (B, K, 3, 3)."""
        s = self.progress(tau)
        factor, angle = torch.exp(self.zoom * s), self.rotation * s
        a, b = factor * angle.cos(), factor * angle.sin()
        (px, py), (gx, gy) = self.pivot.unbind(-1), (self.perspective * s[..., None]).unbind(-1)
        tx, ty = (self.shift * s[..., None]).unbind(-1)
        rows = [a, -b, px - a * px + b * py + tx, b, a, py - b * px - a * py + ty, gx, gy, torch.ones_like(s)]
        return torch.stack(rows, -1).unflatten(-1, (3, 3))


def project(matrix: Tensor, p: Tensor) -> Tensor:
    """Points p (B, K, N, 2) under homographies (B, K, 3, 3)."""
    q = p @ matrix[..., :2].mT + matrix[..., 2][..., None, :]
    return q[..., :2] / q[..., 2:]


def pixels(size: tuple[int, int], device: torch.device) -> Tensor:
    """All pixels of a frame of (height, width) from its centre, (1, 1, H * W, 2)."""
    y, x = (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).reshape(1, 1, -1, 2)


def wobble(scene: Scene, y: Tensor) -> Tensor:
    """D(y), a sum of sine waves. y: (B, K, N, 2)."""
    waves = torch.sin(y @ scene.frequency.mT + scene.offset[..., None, :])
    return waves @ scene.amplitude


def to_layers(scene: Scene, tau: Tensor) -> Tensor:
    """The point q of every layer that is at every pixel at tau (B,): (B, K, N, 2)."""
    matrix = scene.camera.matrix(tau) @ scene.motion.matrix(tau)
    y = project(torch.linalg.inv(matrix), pixels(scene.size, tau.device))
    return y + scene.motion.progress(tau)[..., None, None] * wobble(scene, y)


def from_layers(scene: Scene, q: Tensor, tau: Tensor) -> Tensor:
    """Where the points q of every layer are at tau: the inverse of `to_layers`, (B, K, N, 2)."""
    s = scene.motion.progress(tau)[..., None, None]
    y = q
    for _ in range(4):  # a contraction: s times the wobble's slope is below 0.1, so the error falls under 1e-3 pixels
        y = q - s * wobble(scene, y)
    return project(scene.camera.matrix(tau) @ scene.motion.matrix(tau), y)


def opacity(scene: Scene, q: Tensor) -> Tensor:
    """The layers' masks at q (B, K, N, 2), in [0, 1]: (B, K, N)."""
    cos, sin = scene.turn.cos()[..., None], scene.turn.sin()[..., None]
    x, y = (q - scene.centre[..., None, :]).unbind(-1)
    x, y = cos * x + sin * y, cos * y - sin * x
    rx, ry = scene.radius[..., None, :].unbind(-1)
    angle = torch.atan2(y / ry, x / rx)
    orders = torch.arange(1, HARMONICS + 1, device=q.device)
    ripples = (angle[..., None] * orders + scene.phases[..., None, :]).cos()
    outline = 1 + (ripples @ scene.harmonics[..., None])[..., 0]
    blob = (outline - torch.hypot(x / rx, y / ry)) * torch.minimum(rx, ry)
    # Thin bars of width ry / 4, ry * 2 apart: poles, fences, wires.
    bars = torch.minimum(ry / 8 - (torch.remainder(y, 2 * ry) - ry).abs(), 2 * rx - torch.hypot(x, y))
    grid = torch.stack([x / (2 * rx), y / (2 * ry)], -1)
    noise = F.grid_sample(scene.noise.flatten(0, 1)[:, None], grid.flatten(0, 1)[:, None], align_corners=False)
    rim = (grid.abs().amax(-1) - 0.75).clamp(min=0)  # the noise ends before its grid does
    noise = (noise.view(blob.shape) - 8 * rim) * torch.minimum(rx, ry) / 2
    kind = scene.kind[..., None]
    distance = torch.where(kind == BLOB, blob, torch.where(kind == BARS, bars, noise))
    alpha = torch.sigmoid(distance / scene.soft[..., None]) * scene.shown[..., None]
    alpha[:, 0] = 1
    return alpha


def colours(scene: Scene, q: Tensor) -> Tensor:
    """The layers' textures at q (B, K, N, 2): (B, K, 3, N) in [0, 1]."""
    texture = scene.texture.flatten(0, 1).movedim(-1, 1).float() / 255
    grid = (q @ scene.view.mT) * (2 / texture.shape[-1])
    # Beyond its border the photograph continues as its mirror image.
    sampled = F.grid_sample(texture, grid.flatten(0, 1)[:, None], padding_mode="reflection", align_corners=False)
    return (sampled[:, :, 0].unflatten(0, scene.gain.shape[:2]) * scene.gain[..., None]).clamp(0, 1)


class View(NamedTuple):
    """What is needed to draw a scene at tau (B,): each pixel's point on every layer, and the layers' masks there."""

    tau: Tensor
    q: Tensor
    alpha: Tensor


def view_at(scene: Scene, tau: Tensor) -> View:
    """The scene as it lies at tau, (B,)."""
    q = to_layers(scene, tau)
    return View(tau, q, opacity(scene, q))


def frame_of(scene: Scene, view: View) -> Tensor:
    """The frames (B, 3, H, W) in [0, 1], layers composed back to front."""
    alpha, colour = view.alpha[:, :, None], colours(scene, view.q)
    frame = colour[:, 0]
    for k in range(1, alpha.shape[1]):
        frame = torch.lerp(frame, colour[:, k], alpha[:, k])
    return frame.unflatten(-1, scene.size)


def flow_of(scene: Scene, view: View) -> Tensor:
    """The flow tau->0 and tau->1 of the layer that is seen at each pixel, (B, 4, H, W) in pixels."""
    tau, q, alpha = view
    order = torch.arange(alpha.shape[1], device=q.device)[:, None]
    front = ((alpha > 0.5) * order).argmax(1)[:, None, :, None].expand(-1, -1, -1, 2)
    p = pixels(scene.size, q.device)[:, 0]
    ends = [from_layers(scene, q, torch.full_like(tau, end)).gather(1, front)[:, 0] - p for end in (0.0, 1.0)]
    return torch.cat(ends, -1).mT.unflatten(-1, scene.size)


class Synthetic:
    """A source of random scenes.

    windows: (P, S, S, 3) uint8, squares of photographs (`photo_windows`), on the device to work on. size: (height,
    width) of the frames. layers: objects in front of the background, at most. speed: median motion of a layer in pixels
    between t = 0 and 1; the distribution is log-normal and reaches `fastest`. seed: same seed, same scenes.
    """

    def __init__(
        self,
        windows: Tensor,
        size: tuple[int, int],
        layers: int = 4,
        speed: float = 4.0,
        fastest: float | None = None,
        seed: int = 0,
    ):
        self.windows, self.size, self.layers, self.speed = windows, size, layers, speed
        self.fastest = fastest or min(size) / 2
        self.random = torch.Generator(windows.device).manual_seed(seed)

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.random, device=self.windows.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, device=self.windows.device)

    def _index(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.random, device=self.windows.device)

    def _chance(self, probability: float, *shape: int) -> Tensor:
        return (self._uniform(0, 1, *shape) < probability).float()

    def _motion(self, batch: int, layers: int, speed: float) -> Motion:
        shape = batch, layers
        extent = max(self.size)
        length = (speed * torch.exp(1.1 * self._normal(*shape))).clamp(max=self.fastest)
        direction = self._uniform(0, 2 * math.pi, *shape)
        # Half of the layers turn and zoom; by so much that their rim moves about as far as others are shifted.
        rigid = self._chance(0.5, *shape)
        return Motion(
            shift=torch.stack([length * direction.cos(), length * direction.sin()], -1),
            rotation=(rigid * self._normal(*shape) * 2 * speed / extent).clamp(-0.5, 0.5),
            zoom=(rigid * self._normal(*shape) * 1.5 * speed / extent).clamp(-0.3, 0.3),
            perspective=(self._chance(0.3, *shape)[..., None] * self._normal(*shape, 2) * 0.03 / extent).clamp(
                -0.15 / extent, 0.15 / extent
            ),
            pivot=self._uniform(-extent / 2, extent / 2, *shape, 2),
            acceleration=self._chance(0.3, *shape) * self._uniform(-0.4, 0.4, *shape),
        )

    def _textures(self, shape: tuple[int, int], side: int) -> Tensor:
        """Random squares of `side` pixels out of the windows, flipped at random, (B, K, side, side, 3) uint8."""
        count, full = self.windows.shape[0], self.windows.shape[1]
        side = min(side, full)
        which = self._index(count, *shape)[..., None, None]
        steps = torch.arange(side, device=self.windows.device)
        rows, columns = (self._index(full - side + 1, *shape)[..., None] + steps for _ in range(2))
        return self.windows[which, rows[..., :, None], columns[..., None, :]]

    def scenes(self, batch: int) -> Scene:
        """A batch of random scenes."""
        count = 1 + self.layers
        shape = batch, count
        height, width = self.size
        angle, zoom = self._normal(*shape) * 0.3, self._uniform(0.7, 1.3, *shape)
        mirror = 1 - 2 * self._chance(0.5, *shape)
        a, b = zoom * angle.cos(), zoom * angle.sin()
        view = torch.stack([a * mirror, -b, b * mirror, a], -1).unflatten(-1, (2, 2))
        extent = torch.tensor([width, height], device=view.device)
        # Small objects are as many as large ones: their size is uniform in the logarithm.
        radius = min(self.size) * torch.exp(self._uniform(math.log(0.06), math.log(0.5), *shape))
        shown = (self._index(self.layers + 1, batch, 1) >= torch.arange(count, device=view.device)).float()
        frequency = self._normal(*shape, WAVES, 2) * math.pi / min(self.size)
        amplitude = self._normal(*shape, WAVES, 2) * self._chance(0.4, *shape)[..., None, None]
        steepness = frequency.norm(dim=-1, keepdim=True) * WAVES
        limit = torch.minimum(0.15 / steepness, torch.tensor(self.speed, device=view.device))
        return Scene(
            texture=self._textures(shape, int(1.4 * max(self.size))),
            view=view,
            gain=self._uniform(0.6, 1.25, *shape, 1) * self._uniform(0.9, 1.1, *shape, 3),
            shown=shown,
            kind=torch.where(self._chance(0.6, *shape) > 0, BLOB, 1 + self._index(2, *shape)),
            centre=self._uniform(-0.5, 0.5, *shape, 2) * extent,
            radius=radius[..., None] * torch.exp(0.4 * self._normal(*shape, 2)),
            turn=self._uniform(0, math.pi, *shape),
            harmonics=0.25 * self._normal(*shape, HARMONICS) / torch.arange(1, HARMONICS + 1, device=view.device),
            phases=self._uniform(0, 2 * math.pi, *shape, HARMONICS),
            soft=torch.exp(self._uniform(math.log(0.2), math.log(1.5), *shape)),
            noise=self._normal(*shape, 8, 8),
            motion=self._motion(batch, count, self.speed),
            camera=self._motion(batch, 1, self.speed / 2),
            amplitude=amplitude.clamp(-1, 1) * limit,
            frequency=frequency,
            offset=self._uniform(0, 2 * math.pi, *shape, WAVES),
            size=self.size,
        )

    def frames(self, batch: int, times: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Frames (B, N, 3, H, W) of new scenes at N times and their flow (B, N, 4, H, W) to t = 0 and t = 1."""
        scene = self.scenes(batch)
        views = [view_at(scene, torch.full((batch,), t, device=self.windows.device)) for t in times]
        return tuple(torch.stack([f(scene, view) for view in views], 1) for f in (frame_of, flow_of))

    def batch(self, batch: int, any_time: bool = False) -> Sample:
        """A batch for training; `any_time` draws t from (0, 1) for each scene instead of one half."""
        scene = self.scenes(batch)
        t = self._uniform(0.05, 0.95, batch) if any_time else torch.full((batch,), 0.5, device=self.windows.device)
        view0, viewt, view1 = (view_at(scene, tau) for tau in (torch.zeros_like(t), t, torch.ones_like(t)))
        img0, imgt, img1 = (frame_of(scene, view) for view in (view0, viewt, view1))
        return Sample(img0, imgt, img1, t, flow_of(scene, viewt))


def photo_windows(paths: Sequence[Path] | None = None, side: int = WINDOW) -> Tensor:
    """Photographs as square windows that cover them, (P, side, side, 3) uint8; smaller ones are enlarged to fit.

    paths: picture files; None for the photographs inside scikit-image (PHOTOGRAPHS).
    """
    photographs = skimage_photographs() if paths is None else map(io.read_image, paths)
    windows = []
    for photo in photographs:
        photo = torch.from_numpy(photo).movedim(-1, 0)[None].float()
        short = min(photo.shape[-2:])
        if short < side:
            photo = F.interpolate(photo, scale_factor=side / short * 1.0001, mode="bicubic", antialias=True)
        photo = photo[0].round().clamp(0, 255).to(torch.uint8).movedim(0, -1)
        for top in _starts(photo.shape[0], side):
            for left in _starts(photo.shape[1], side):
                windows.append(photo[top : top + side, left : left + side])
    return torch.stack(windows)


def _starts(length: int, side: int) -> list[int]:
    """Where windows of `side` begin that together cover `length`."""
    return np.linspace(0, length - side, math.ceil(length / side)).astype(int).tolist()


def skimage_photographs() -> list[np.ndarray]:
    """The photographs of PHOTOGRAPHS, RGB uint8."""
    import skimage.color
    import skimage.data

    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    return [photo if photo.ndim == 3 else skimage.color.gray2rgb(photo) for photo in photographs]


def write_vimeo90k(out: Path, source: Synthetic, train: int, test: int) -> None:
    """Triplets with their exact flow in the layout of Vimeo90K; the lists come last: where they are, all else is."""
    from tqdm import tqdm

    names = [f"{1 + i // 1000:05d}/{1 + i % 1000:04d}" for i in range(train + test)]
    for name in tqdm(names, desc=str(out), unit="triplet"):
        frames, flow = source.frames(1, (0.0, 0.5, 1.0))
        for number, frame in enumerate(io.to_uint8(frames[0]), start=1):
            io.write_image(out / "sequences" / name / f"im{number}.png", frame)
        for end in (0, 1):
            half = flow[0, 1, 2 * end : 2 * end + 2].movedim(0, -1)
            io.write_flow(out / "flow" / name / f"flow_t{end}.flo", half.cpu().numpy())
    for split, part in (("train", names[:train]), ("test", names[train:])):
        io.write_bytes(out / f"tri_{split}list.txt", "".join(f"{name}\n" for name in part).encode())


def main(args: argparse.Namespace) -> None:
    windows = photo_windows(io.list_images(args.images) if args.images else None)
    source = Synthetic(windows, (args.height, args.width), speed=args.speed, seed=args.seed)
    write_vimeo90k(args.out, source, args.train, args.test)
    size = f"{args.width}x{args.height}"
    print(f"{args.out}: {args.train} triplets to train on, {args.test} to test on, {size}, with exact flow")


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("data/vimeo_triplet_demo"), help="folder to write to")
    options.add_argument("--images", type=Path, help="folder of photographs (default: those inside scikit-image)")
    options.add_argument("--train", type=cli.positive, default=48, help="triplets in tri_trainlist.txt")
    options.add_argument("--test", type=cli.positive, default=12, help="triplets in tri_testlist.txt")
    options.add_argument("--width", type=cli.positive, default=448, help="of the frames, pixels")
    options.add_argument("--height", type=cli.positive, default=256, help="of the frames, pixels")
    options.add_argument("--speed", type=float, default=4.0, help="median motion of an object, im1 to im3, pixels")
    options.add_argument("--seed", type=int, default=0, help="another number, other scenes")
    return options


if __name__ == "__main__":
    cli.run(main, parser())
