"""GoPro at 240 frames a second (GOPRO_Large_all) as windows of nine frames: two go in, seven between are targets.

    ROOT/train/VIDEO/*.png    or flat, ROOT/VIDEO/*.png; 1280x720

clips.Windows makes Samples of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.io import gaps, list_images, read_frames, warn_of_gaps

PAGE = "https://seungjunnah.github.io/Datasets/gopro"  # where the set is described and downloaded
LENGTH, STRIDE = 9, 8  # the paper's windows: neighbours share one frame
VALIDATION_SIZE = 512  # the paper's centre crop
# The paper's split, frozen here, because copies of the set differ in the folders that they hold.
TRAIN_VIDEOS = (
    "GOPR0372_07_00", "GOPR0372_07_01", "GOPR0374_11_00", "GOPR0374_11_01", "GOPR0374_11_02", "GOPR0374_11_03",
    "GOPR0378_13_00", "GOPR0379_11_00", "GOPR0380_11_00", "GOPR0384_11_01", "GOPR0384_11_02", "GOPR0384_11_03",
    "GOPR0384_11_04", "GOPR0385_11_00", "GOPR0386_11_00", "GOPR0477_11_00", "GOPR0857_11_00", "GOPR0868_11_01",
    "GOPR0868_11_02", "GOPR0871_11_01", "GOPR0881_11_00", "GOPR0884_11_00",
)  # fmt: skip
TEST_VIDEOS = (
    "GOPR0384_11_00", "GOPR0384_11_05", "GOPR0385_11_01", "GOPR0396_11_00", "GOPR0410_11_00", "GOPR0854_11_00",
    "GOPR0862_11_00", "GOPR0868_11_00", "GOPR0869_11_00", "GOPR0871_11_00", "GOPR0881_11_01",
)  # fmt: skip


class Window(NamedTuple):
    """Neighbouring frames of one video, on the disk."""

    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        return "/".join(self.paths[0].parts[-2:])

    @property
    def frames(self) -> np.ndarray:
        """(N, H, W, 3) uint8. ValueError where they have different sizes."""
        return read_frames(self.paths)


def windows(root: str | Path, videos: Sequence[str] = TRAIN_VIDEOS) -> list[Window]:
    """The windows of these videos, in their order, without those in which frames are missing. FileNotFoundError where
    a video is missing, ValueError where one has no window."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; GoPro (GOPRO_Large_all) is described at {PAGE}; --data names another"
        )
    result = []
    for video in videos:
        found = [folder for folder in (root / "train" / video, root / "test" / video, root / video) if folder.is_dir()]
        if not found:
            way = f"see {PAGE}, or train on footage of your own with --data clips:{root}"
            raise FileNotFoundError(f"{root}: no video {video}, neither here nor in train/ or test/; {way}")
        paths = list_images(found[0])
        warn_of_gaps(paths)
        missing = set(gaps(paths))  # after these
        starts = range(0, len(paths) - LENGTH + 1, STRIDE)
        whole = [start for start in starts if missing.isdisjoint(range(start, start + LENGTH - 1))]
        if not whole:
            raise ValueError(f"{found[0]}: {len(paths)} frames; a window takes {LENGTH} successive ones")
        result += [Window(tuple(paths[start : start + LENGTH])) for start in whole]
    return result
