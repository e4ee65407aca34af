"""Photographs and textures in procedural motion, with the exact optical flow: training data that needs no download.

A scene is a background and up to `layers` objects in front of it: stencils filled with a photograph's or a made-up
texture's pixels, or objects cut out of photographs. Each moves on its own path (translation, rotation, zoom about a
centre that moves along, perspective, a smooth non-rigid wobble, acceleration), all of them under one camera motion.
Everything is batched torch code and runs where the textures lie, CPU or GPU; random numbers are drawn on the CPU, so
that a seed means the same scenes on both. How scenes are drawn, and all conventions: scenes.py.

    python -m datasets.synthetic --out data/vimeo_triplet_demo
    python -m datasets.synthetic --out data/mine --images FOLDER --train 500 --test 50
"""

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import Sample
from datasets.scenes import Layer, Motion, Scene, Waves, chart, flow_of, frame_of, stencil_chart, view_at
from datasets.stencils import INNER, KINDS, STEPS, THIN, Cutouts, Stencils, cutouts, drawn_stencils
from datasets.textures import procedural_patches
from datasets.vimeo90k import RECORD, TEST_LIST, TRAIN_LIST
from utils import cli, flow_files, io

# Those of scikit-image's photographs that are in the public domain or CC0 and lie inside the package.
PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "clock", "coffee", "grass", "gravel", "hubble_deep_field", "retina",
    "rocket", "text",
)  # fmt: skip
PATCH = 384  # photographs are kept as square patches of this side
MOST_PIXELS = 2**21  # larger photographs are halved, but not below a patch: all patches are in memory, on every rank
MOST_BYTES = 8e9  # of all patches of photographs
WAVES = 3  # of the wobble
TAIL = 1.2  # of the log-normal speeds: one in twenty is 7 times the median, one in a hundred 16 times
TEXTURES = 160  # how many are made; each is a patch, of which scenes show parts
LEAST_SIDE, LEAST_SPEED = 32, 0.5  # pixels; of frames on disk, of the median motion in them
CUTOUT_SIDE = 192  # side of the objects cut out of photographs
CUTOUT_SHARE = 0.5  # share of the objects that are cut out of photographs, where there are such
# Batches to draw at once: for a GPU, launching the kernels of a few scenes takes longer than a training step. What is
# drawn once per group, such as whether the n-th objects are cut out of photographs, holds for this many steps.
GROUP = 4
TRIES = 100  # attempts at a scene with visible motion
SUBFRAMES, SHUTTER = 5, (0.05, 0.3)  # of a frame with motion blur; its exposure, of the time from 0 to 1


class Material(NamedTuple):
    """What scenes are made of, on one device. patches: (P, S, S, 3) uint8, squares of photographs or textures; odds:
    (P,), how likely each is, on the CPU; stencils: shapes of objects; cutouts: objects out of photographs."""

    patches: Tensor
    odds: Tensor
    stencils: Stencils
    cutouts: Cutouts | None = None

    def to(self, device: torch.device) -> "Material":
        return to_device(self, device)._replace(odds=self.odds)


def material(
    images: Sequence[Path] | None = None,
    masks: Path | None = None,
    procedural: float = 0.0,
    side: int = PATCH,
    seed: int = 0,
) -> Material:
    """Photographs (None: those inside scikit-image), a share of made-up textures among them, and shapes to cut out.

    masks: a folder of segmentations of the photographs, see `stencils.cutouts`. procedural: the share. side: of the
    patches. ValueError where masks come without images, or the photographs are too many.
    """
    if masks and not images:
        raise ValueError(f"--masks {masks}: segmentations go with photographs of the same names; give --images too")
    patches = photo_patches(images, side, room=TEXTURES if procedural else 0)
    count = len(patches) - (TEXTURES if procedural else 0)
    odds = torch.full((len(patches),), (1 - procedural) / count)
    if procedural:
        patches[count:], odds[count:] = procedural_patches(TEXTURES, side, seed), procedural / TEXTURES
    cut = cutouts(images, masks, CUTOUT_SIDE, seed) if masks else None
    return Material(patches, odds, drawn_stencils(seed=seed), cut)


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors, and tuples of them, on a device; the CPU does not wait for a GPU."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, tuple):
        parts = [to_device(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


class Synthetic:
    """A source of random scenes.

    material: what to make them of, on the device to work on. size: (height, width) of the frames. layers: objects in
    front of the background, at most. speed: median shift of the layers that move, in pixels between t = 0 and 1; the
    distribution is log-normal and reaches half the shorter side. Rotation, zoom and the camera's motion come on top; a
    share of the layers does not move at all. blur: share of the samples with motion blur. seed: same seed, same scenes.
    """

    def __init__(
        self,
        material: Material,
        size: tuple[int, int],
        layers: int = 4,
        speed: float = 4.0,
        blur: float = 0.0,
        seed: int = 0,
    ):
        self.material, self.size, self.layers, self.speed, self.blur = material, size, layers, speed, blur
        self.device, self.fastest = material.patches.device, min(size) / 2
        thin = torch.tensor([kind in THIN for kind in KINDS])
        self.thin = thin[material.stencils.kind.cpu()]
        self.random = torch.Generator().manual_seed(seed)

    # Random numbers, on the CPU.

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.random)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def _index(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.random)

    def _chance(self, probability: float, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=self.random) < probability).float()

    def _lengths(self, median: float, n: int) -> Tensor:
        return (median * torch.exp(TAIL * self._normal(n))).clamp(max=self.fastest)

    # What a scene is made of.

    def _motion(self, n: int, speed: float, pivot: Tensor, reach: Tensor, still: float) -> Motion:
        """Motions about a pivot (n, 2); what is `reach` (n,) away from it turns and zooms by about as much as others
        are shifted. still: the share that does not move, except for its wobble."""
        moving = 1 - self._chance(still, n)
        direction = self._uniform(0, 2 * math.pi, n)
        turning, zooming = (self._chance(0.5, n) * self._normal(n).sign() * moving for _ in range(2))
        extent = max(self.size)
        return Motion(
            shift=(moving * self._lengths(speed, n))[:, None] * torch.stack([direction.cos(), direction.sin()], -1),
            rotation=turning * (self._lengths(speed / 2, n) / reach).clamp(max=0.6),
            zoom=zooming * (self._lengths(speed / 2, n) / reach).clamp(max=0.4),
            perspective=(self._chance(0.3, n) * moving)[:, None]
            * (self._normal(n, 2) * 0.03 / extent).clamp(-0.15 / extent, 0.15 / extent),
            pivot=pivot,
            acceleration=self._chance(0.3, n) * self._uniform(-0.4, 0.4, n),
        )

    def _waves(self, n: int) -> Waves | None:
        """In two calls of five all n layers wobble, only as steeply as `from_layer` can invert; in the others, none."""
        if not self._chance(0.4):
            return None
        frequency = self._normal(n, WAVES, 2) * math.pi / min(self.size)
        limit = torch.clamp(0.15 / (WAVES * frequency.norm(dim=-1)), max=self.speed)
        amplitude = self._normal(n, 2, WAVES).clamp(-1, 1) * limit[:, None]
        return Waves(amplitude, frequency, self._uniform(0, 2 * math.pi, n, WAVES))

    def _mirror(self, n: int) -> Tensor:
        """(n, 2) factors on x and y: half of them mirror x."""
        return torch.stack([1 - 2 * self._chance(0.5, n), torch.ones(n)], 1)

    def _texture(self, n: int) -> tuple[Tensor, Tensor]:
        """Random squares (n, 3, side, side) uint8 of the patches, a little larger than the frame, and their view."""
        full = self.material.patches.shape[1]
        side = min(int(1.4 * max(self.size)), full)
        which = torch.multinomial(self.material.odds, n, replacement=True, generator=self.random)
        corners = (self._index(full - side + 1, n) for _ in range(2))
        squares = self.material.patches.unfold(1, side, 1).unfold(2, side, 1)  # (P, rows, columns, 3, side, side)
        scale = self._uniform(0.75, 1.4, n, 1) * side / 2 * self._mirror(n)
        view = chart(torch.zeros(n, 2), 0.3 * self._normal(n), scale)
        return squares[to_device((which, *corners), self.device)], view

    def _gain(self, n: int) -> Tensor:
        return self._uniform(0.6, 1.25, n, 1) * self._uniform(0.9, 1.1, n, 3)

    def _background(self, n: int) -> Layer:
        extent = max(self.size)
        pivot = self._uniform(-extent / 2, extent / 2, n, 2)
        motion = self._motion(n, self.speed, pivot, torch.full((n,), extent / 2), still=0.3)
        return Layer(*self._texture(n), self._gain(n), motion, self._waves(n))

    def _object(self, n: int) -> Layer:
        """Objects, all n of them cut out of photographs, or all of them stencils filled with a texture."""
        stencils, cutouts = self.material.stencils, self.material.cutouts
        short, size = min(self.size), self._uniform(0, 1, n)
        centre = self._uniform(-0.5, 0.5, n, 2) * torch.tensor(self.size[::-1])
        # Sizes are log-uniform: as many small objects as large ones.
        if cutouts is not None and self._chance(CUTOUT_SHARE):
            which = to_device(self._index(len(cutouts.picture), n), self.device)
            texture, stencil = cutouts.picture[which].movedim(-1, 1), cutouts.distance[which]
            radius = short * 0.1 * 7**size
            view = place = stencil_chart(centre, 0.2 * self._normal(n), radius[:, None] * self._mirror(n))
        else:
            which = self._index(len(self.thin), n)
            stencil = stencils.distance[to_device(which, self.device)]
            radius = short * torch.where(self.thin[which], 0.3 * 3**size, 0.06 * 8**size)
            stretch = torch.exp(0.3 * self._normal(n, 2))
            place = stencil_chart(centre, self._uniform(0, 2 * math.pi, n), radius[:, None] * stretch)
            texture, view = self._texture(n)
        soft = torch.exp(self._uniform(math.log(0.2), math.log(1.5), n))  # pixels
        sharpness = radius / (INNER * stencil.shape[1] * STEPS * soft)
        motion = self._motion(n, self.speed, centre + 0.5 * radius[:, None] * self._normal(n, 2), radius, still=0.15)
        return Layer(texture, view, self._gain(n), motion, self._waves(n), stencil, place, sharpness)

    def scenes(self, batch: int) -> Scene:
        """A batch of random scenes."""
        counts = self._index(self.layers + 1, batch)
        present = [int((counts >= k).sum()) for k in range(1, self.layers + 1)]
        layers = (self._background(batch), *(self._object(n) for n in present if n))
        middle, extent = torch.zeros(batch, 2), max(self.size)
        pivot = middle + 0.3 * extent * self._normal(batch, 2)
        camera = self._motion(batch, self.speed / 2, pivot, torch.full((batch,), extent / 2), still=0.3)
        return Scene(to_device(layers, self.device), to_device(camera, self.device), self.size)

    def frames(self, batch: int, times: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Frames (B, N, 3, H, W) of new scenes at N times and their flow (B, N, 4, H, W) to t = 0 and t = 1."""
        scene = self.scenes(batch)
        view = view_at(scene, torch.tensor([list(times)] * batch, device=self.device))
        return frame_of(scene, view), flow_of(scene, view)

    def batch(self, batch: int, any_time: bool = False) -> Sample:
        """A batch for training; `any_time` draws t from 0.05 to 0.95 for each scene instead of one half."""
        blurred = int(self._chance(self.blur, batch).sum())
        parts = [self._samples(n, any_time, blur) for n, blur in ((blurred, True), (batch - blurred, False)) if n]
        return Sample(*map(torch.cat, zip(*parts)))

    def _samples(self, n: int, any_time: bool, blur: bool) -> Sample:
        scene = self.scenes(n)
        t = self._uniform(0.05, 0.95, n) if any_time else torch.full((n,), 0.5)
        times = to_device(torch.stack([torch.zeros(n), t, torch.ones(n)], 1), self.device)
        view = view_at(scene, times)
        if blur:  # the mean over the exposure; its flow is that at the middle of this time
            exposed = to_device(self._uniform(*SHUTTER, n, 1), self.device)
            offsets = (torch.arange(SUBFRAMES) - (SUBFRAMES - 1) / 2) / SUBFRAMES
            frames = sum(frame_of(scene, view_at(scene, times + exposed * at)) for at in offsets.tolist()) / SUBFRAMES
        else:
            frames = frame_of(scene, view)
        return Sample(*frames.unbind(1), times[:, 1], flow_of(scene, view.at(1))[:, 0])


def photo_patches(paths: Sequence[Path] | None = None, side: int = PATCH, room: int = 0) -> Tensor:
    """Photographs as square patches that cover them, (P + room, side, side, 3) uint8; smaller ones are enlarged to fit,
    and those of more than MOST_PIXELS halved.

    paths: picture files; None for the photographs inside scikit-image (PHOTOGRAPHS). room: black patches at the end,
    for others. ValueError where all would take more than MOST_BYTES.
    """
    photographs = skimage_photographs() if paths is None else map(io.read_image, paths)
    patches = np.empty((0, side, side, 3), np.uint8)
    for number, photo in enumerate(photographs):
        photo = _fitted(photo, side)
        corners = itertools.product(*(_starts(length, side) for length in photo.shape[:2]))
        new = [photo[top : top + side, left : left + side] for top, left in corners]
        if patches.nbytes + len(new) * new[0].nbytes > MOST_BYTES:
            raise ValueError(
                f"{paths[number]}: only the {number} photographs before this one, of {len(paths)}, fit as patches into "
                f"{MOST_BYTES / 1e9:g} GB; give fewer"
            )
        # Grown in place: a list of patches that is joined at the end would be in memory twice.
        patches.resize((len(patches) + len(new), *patches.shape[1:]), refcheck=False)
        patches[-len(new) :] = new
    patches.resize((len(patches) + room, *patches.shape[1:]), refcheck=False)
    return torch.from_numpy(patches)


def _fitted(photo: np.ndarray, side: int) -> np.ndarray:
    """A photograph resized so that patches can be cut from it."""
    while photo[..., 0].size > MOST_PIXELS and min(photo.shape[:2]) >= 2 * side:
        photo = cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    short = min(photo.shape[:2])
    if short >= side:
        return photo
    planes = torch.from_numpy(photo).movedim(-1, 0)[None].float()
    planes = F.interpolate(planes, scale_factor=side / short * 1.0001, mode="bicubic", antialias=True)[0]
    return planes.round().clamp(0, 255).to(torch.uint8).movedim(0, -1).numpy()


def _starts(length: int, side: int) -> list[int]:
    """Where patches of `side` begin that together cover `length`."""
    return np.linspace(0, length - side, math.ceil(length / side)).astype(int).tolist()


def skimage_photographs() -> list[np.ndarray]:
    """The photographs of PHOTOGRAPHS, RGB uint8."""
    import skimage.color
    import skimage.data

    with cli.undisturbed():  # imageio's destructor prints a traceback where its constructor was interrupted
        photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    return [photo if photo.ndim == 3 else skimage.color.gray2rgb(photo) for photo in photographs]


def write_vimeo90k(out: Path, source: Synthetic, train: int, test: int) -> None:
    """Write triplets with their exact flow in the layout of Vimeo90K, without scenes that show no motion; ValueError
    where there seem to be no others. The lists come last, that of training at the very end: where it is, all else
    is."""
    from tqdm import tqdm

    for split in (TRAIN_LIST, TEST_LIST):
        (out / split).unlink(missing_ok=True)
    names = [f"{1 + i // 1000:05d}/{1 + i % 1000:04d}" for i in range(train + test)]
    for name in tqdm(names, desc=str(out), unit="triplet"):
        for _ in range(TRIES):
            frames, flow = source.frames(1, (0.0, 0.5, 1.0))
            if (frames[:, 0] - frames[:, 2]).abs().mean() >= 1 / 255:
                break
        else:
            raise ValueError("no motion is visible in these photographs; give others, or a larger --speed")
        for number, frame in enumerate(io.to_uint8(frames[0]), start=1):
            path = out / "sequences" / name / f"im{number}.png"
            io.clear_left(path)
            io.write_image(path, frame)
        for end in (0, 1):
            half = flow[0, 1, 2 * end : 2 * end + 2].movedim(0, -1)
            path = out / "flow" / name / f"flow_t{end}.flo"
            io.clear_left(path)
            flow_files.write_flow(path, half.cpu().numpy())
    io.write_bytes(out / "flow" / RECORD, json.dumps({"teacher": "exact", "format": "flo"}).encode())
    for split, part in ((TEST_LIST, names[train:]), (TRAIN_LIST, names[:train])):
        io.write_bytes(out / split, "".join(f"{name}\n" for name in part).encode())


def main(args: argparse.Namespace) -> None:
    if min(args.width, args.height) < LEAST_SIDE:
        raise ValueError(f"{args.width}x{args.height} is too small; give --width and --height of {LEAST_SIDE} or more")
    if args.speed < LEAST_SPEED:
        raise ValueError(f"--speed {args.speed:g}: hardly any motion would be visible; give {LEAST_SPEED} or more")
    io.check_writable(args.out)
    with io.only_run(args.out):
        if (args.out / TRAIN_LIST).exists() and not args.overwrite:
            raise ValueError(f"{args.out}: a set is there; give --overwrite to replace it, or another --out")
        images = io.list_images(args.images, below=True) if args.images else None
        source = Synthetic(material(images), (args.height, args.width), speed=args.speed, seed=args.seed)
        write_vimeo90k(args.out, source, args.train, args.test)
    size = f"{args.width}x{args.height}"
    print(f"{args.out}: {args.train} triplets to train on, {args.test} to test on, {size}, with exact flow")


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    options.add_argument(
        "--out", type=Path, default=cli.DATA / "vimeo_triplet_demo", help="folder to write to (%(default)s)"
    )
    options.add_argument("--images", type=Path, help="folder of photographs (default: those inside scikit-image)")
    options.add_argument("--train", type=cli.positive, default=48, help="triplets in tri_trainlist.txt (%(default)s)")
    options.add_argument("--test", type=cli.positive, default=12, help="triplets in tri_testlist.txt (%(default)s)")
    options.add_argument("--width", type=cli.positive, default=448, help="of the frames, pixels (%(default)s)")
    options.add_argument("--height", type=cli.positive, default=256, help="of the frames, pixels (%(default)s)")
    options.add_argument(
        "--speed", type=cli.amount, default=4.0, help="median motion of an object, im1 to im3, pixels (%(default)s)"
    )
    options.add_argument("--seed", type=cli.seed, default=0, help="seed of the random scenes (%(default)s)")
    options.add_argument("--overwrite", action="store_true", help="replace the set that is in the folder")
    return options


if __name__ == "__main__":
    cli.run(main, parser())
