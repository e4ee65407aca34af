"""What is scored: pictures in splits and cases, and how they are read."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from torch.utils.data import Dataset

from utils import io

WINDOW = 9  # frames, of the benchmarks of 8x


class Case(NamedTuple):
    """Picture files: two frames, and the true ones between them at `times`. `name` identifies it within a split."""

    name: str
    img0: Path
    img1: Path
    targets: tuple[Path, ...]
    times: tuple[float, ...] = (0.5,)

    @property
    def pictures(self) -> tuple[Path, ...]:
        return (self.img0, self.img1, *self.targets)


def whole(image: np.ndarray) -> np.ndarray:
    """The image unchanged: the view of most benchmarks."""
    return image


def halved(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The centre crop. ValueError where the picture is smaller."""
    below, beside = image.shape[0] - height, image.shape[1] - width
    if min(below, beside) < 0:
        raise ValueError(f"a frame of {image.shape[1]}x{image.shape[0]} is smaller than the crop of {width}x{height}")
    return image[below // 2 : below // 2 + height, beside // 2 : beside // 2 + width]


def centre_half(image: np.ndarray) -> np.ndarray:
    return centre(image, image.shape[0] // 2, image.shape[1] // 2)


def centre_512(image: np.ndarray) -> np.ndarray:
    return centre(image, 512, 512)


class Split(NamedTuple):
    """Cases that are averaged into one row of the table. view: applied to every picture after it is read. full: the
    number of cases that published averages cover, or the whole set has; None where that is not settled: reports then
    mark the averages as of other cases."""

    name: str
    cases: list[Case]
    view: Callable[[np.ndarray], np.ndarray] = whole
    full: int | None = None


def folders(parent: Path) -> list[Path]:
    """The folders in a folder, but for hidden ones, in the order of their names, numbers by value."""
    found = [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=io.natural)


def find_folder(parent: Path, name: str, page: str) -> Path:
    """A video's folder of pictures. FileNotFoundError without it. page: where the set is described."""
    if not (parent / name).is_dir():
        raise FileNotFoundError(
            f"{parent / name}: no such folder of frames; the benchmark needs it, and {page} describes it"
        )
    return parent / name


def windows(folder: Path) -> list[Case]:
    """A video as windows that share their outer frames: the first and the last of each are given, the rest predicted.
    ValueError where the video is shorter than one window."""
    frames, steps = io.list_images(folder), WINDOW - 1
    if len(frames) < WINDOW:
        raise ValueError(f"{folder}: {len(frames)} frames, but a window takes {WINDOW}")
    io.warn_of_gaps(frames)
    times = tuple(k / steps for k in range(1, steps))
    parts = [frames[i : i + WINDOW] for i in range(0, len(frames) - steps, steps)]
    return [Case(f"{folder.name}/{part[0].stem}", part[0], part[-1], tuple(part[1:-1]), times) for part in parts]


def check_cases(root: Path, splits: list[Split], page: str, skip_broken: bool | None = None) -> None:
    """Look for every picture before hours are spent on the first ones. page: where the set is described. skip_broken:
    whether cases that lack a picture may be left out; None where the command has no such option."""
    for split in splits:
        if not split.cases:
            raise ValueError(f"{root}: nothing to score here: the split {split.name!r} has no case")
        counted = Counter(case.pictures for case in split.cases)
        twice = [case.name for case in split.cases if counted[case.pictures] > 1]
        if twice:
            warnings.warn(f"{root}: listed, and scored, more than once: {', '.join(twice[:4])}", stacklevel=2)
        for case in split.cases:
            for path in case.pictures:
                if not skip_broken and not path.is_file():
                    advice = "copy it again" if skip_broken is None else f"--skip_broken leaves {case.name} out"
                    raise FileNotFoundError(f"{path}: no such file, but the set has it (see {page}); {advice}")


class Batches(Dataset):
    """Batches of cases, read. The whole list is divided into batches, whatever the number of ranks: a case is always
    batched with the same others, so that its score is the same to the last bit, on a CPU with the same number of
    threads (torchrun gives each process one)."""

    def __init__(self, splits: list[Split], size: int):
        self.cases = [(split, case) for split in splits for case in split.cases]
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.cases) // self.size)

    def members(self, batch: int) -> list[tuple[Split, Case]]:
        return self.cases[batch * self.size : (batch + 1) * self.size]

    def mark(self, batch: int) -> str:
        """A hash of the sizes and modification times of a batch's pictures, as they are on the disk now."""
        paths = [path for _, case in self.members(batch) for path in case.pictures]
        states = [path.stat() if path.is_file() else None for path in paths]
        known = [state and (state.st_size, state.st_mtime_ns) for state in states]
        return hashlib.sha256(repr(known).encode()).hexdigest()[:12]

    def __getitem__(self, batch: int) -> tuple[int, list[np.ndarray | str]]:
        """The number of the batch, and what `read` returns for each of its cases."""
        return batch, [read(split, case) for split, case in self.members(batch)]


def _large_enough(image: np.ndarray) -> np.ndarray:
    """The image; ValueError if it is too small for any model."""
    if min(image.shape[:2]) < 2:
        raise ValueError(f"a frame of {image.shape[1]}x{image.shape[0]}; at least 2x2 is needed")
    return image


def read(split: Split, case: Case) -> np.ndarray | str:
    """img0, img1, targets as uint8 (2 + T, H, W, 3), or what is wrong with them."""
    try:
        frames = io.read_frames(case.pictures)
    except (OSError, ValueError) as error:
        return str(error)
    try:
        return np.stack([_large_enough(split.view(_large_enough(frame))) for frame in frames])
    except ValueError as error:
        return f"{case.img0}: {error}"
