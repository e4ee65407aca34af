"""Vimeo90K triplets: a list of names, three frames a name, and the teacher's flow where it was made.

ROOT/tri_trainlist.txt                           names such as 00001/0001, one a line
ROOT/sequences/00001/0001/im1.png im2.png im3.png
ROOT/flow/00001/0001/flow_t0.flo flow_t1.flo     or another of utils.flow_files.FLOWS
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from utils.flow_files import FLOWS, read_flow
from utils.io import read_image, read_text

from . import Sample
from .transforms import Augment, FlowPair, Raw, Stack, centre_crop

TRAIN_LIST, TEST_LIST = "tri_trainlist.txt", "tri_testlist.txt"
FRAMES = ("im1.png", "im2.png", "im3.png")
FLOW = ("flow_t0", "flow_t1")
RECORD = "teacher.json"  # in flow/: what made it
PAGE = "http://toflow.csail.mit.edu"  # where the set is described and downloaded


def read_list(root: str | Path, name: str | Path = TRAIN_LIST, check: bool = True) -> list[str]:
    """The names of a list, blank lines left out. name: a file of the set's folder, or any path. check: look for the
    frames of the first and the last.

    FileNotFoundError, or ValueError for an empty or a cut list.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; Vimeo90K (triplets) is described at {PAGE}; --data names another"
        )
    path = root / name if (root / name).is_file() else Path(name)
    if not path.is_file():
        if str(name) not in (TRAIN_LIST, TEST_LIST):
            raise FileNotFoundError(f"{name}: no such list of triplets, neither here nor in {root}")
        path = root / name
        way = f"see {PAGE}; train_vimeo90k.py takes footage of your own as --data clips:{root}"
        raise FileNotFoundError(f"{path}: no such list; is {root} the folder of Vimeo90K's triplets? If not, {way}")
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the list is empty")
    # Checking all would take a minute; what a truncated copy lacks is at the end.
    where = root / "sequences"
    for number, line in (lines[0], lines[-1]) if check else ():
        if not any((where / line / frame).is_file() for frame in FRAMES):  # a cut line may still name a folder: 00001
            raise ValueError(f"{path}, line {number}: {line!r} has no frames in {where}; copy the set again")
    return [line for _, line in lines]


class Vimeo90K(Dataset):
    """Triplets as Samples of t = 1/2.

    root: the folder of the set. names: which triplets, from `read_list`. augment: for training, gives Raw; without it a
    sample is the centre of the frames, as large as the network takes. flow: whether to read the teacher's; None: where
    the folder flow/ is there. Index with i, or (i, epoch) for augmentation that differs from epoch to epoch.
    What is missing, damaged or of another size is a FileNotFoundError or ValueError that names the file.
    """

    def __init__(
        self, root: str | Path, names: Sequence[str], augment: Augment | None = None, flow: bool | None = None
    ):
        self.root, self.names, self.augment = Path(root), list(names), augment
        self.flow = (self.root / "flow").is_dir() if flow is None else flow

    def __len__(self) -> int:
        return len(self.names)

    def stack(self, index: int) -> Stack:
        """A triplet as it lies on the disk."""
        frames, flow, t = self._read(index)
        return Stack(np.stack(frames), flow and np.concatenate(flow, 2), t)

    def paths(self, index: int) -> tuple[list[Path], list[Path]]:
        """The files of a triplet: its frames, and its flow where that is to be read."""
        folder = self.root / "sequences" / self.names[index]
        if not folder.is_dir():  # checked before its flow, which is not what is missing
            raise FileNotFoundError(f"{folder}: listed, but not there; copy it, or take it out of the list")
        frames = [folder / name for name in FRAMES]
        return frames, [find_flow(self.root / "flow" / self.names[index] / name) for name in FLOW if self.flow]

    def _read(self, index: int) -> Stack:
        """As `stack`, but with frames and flows as they were read, not joined into arrays."""
        pictures, fields = self.paths(index)
        frames, flows = [read_image(path) for path in pictures], [read_flow(path) for path in fields]
        for path, array in zip((*pictures, *fields), (*frames, *flows)):
            check_size(path, array, frames[0])
        return Stack(frames, FlowPair(*flows) if flows else None, np.float32([0.5]))

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | Raw:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        stack = self._read(index) if self.augment else self.stack(index)
        try:
            return self.augment(stack, index, epoch) if self.augment else centre_crop(stack).sample()
        except ValueError as error:  # too small: home-made sets may have several sizes
            raise ValueError(f"{self.root / 'sequences' / self.names[index]}: {error}") from error


def find_flow(stem: Path) -> Path:
    """The flow file of this name in whichever format it was written. FileNotFoundError where there is none."""
    for ending in FLOWS:
        path = stem.with_name(stem.name + ending)
        if path.is_file():
            return path
    raise FileNotFoundError(f"{stem}: no teacher flow ({', '.join(FLOWS)}); make it with generate_flow.py")


def check_size(path: Path, array: np.ndarray, first: np.ndarray) -> None:
    """ValueError where a frame (H, W, 3) or a flow (H, W, 2) of a triplet has another size than its first frame."""
    (height, width), (h, w) = array.shape[:2], first.shape[:2]
    if (height, width) != (h, w):
        way = "; make it again with generate_flow.py" if array.shape[2] == 2 else ""
        raise ValueError(f"{path}: {width}x{height}, but the triplet's first frame is {w}x{h}{way}")
