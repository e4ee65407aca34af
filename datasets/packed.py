"""Vimeo90K decoded once, into memory-mapped arrays from which a batch is copied crop by crop.

    python -m datasets.packed --data data/vimeo_triplet --out data/vimeo_packed
    python train_vimeo90k.py --data data/vimeo_packed
    python train_vimeo90k.py --data data/vimeo_packed --cache gpu      (all of it in GPU memory, where it fits)

    OUT/frames.npy       uint8 (M, 3, H, W, 3): im1, im2, im3 of M triplets; 53 GB for all of Vimeo90K's training list
    OUT/flow.npy         int16 (M, H, W, 4): the teacher's flow in steps of 1/64 pixel, -32768: unknown, or beyond
                         512 pixels; 47 GB
    OUT/checksums.npy    uint32 (M,): CRC of each triplet, 0 where it is not written yet
    OUT/sources.npy      uint32 (M,): CRC of the sizes and times of the files that it was read from
    OUT/index.json       the names, and whether flow was packed; written last, when every checksum was right

After a kill or a full disk the same command continues where it stopped; it also packs again what has changed since.
"""

import argparse
import json
import shutil
import signal
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from utils import cli
from utils.io import BROKEN_ARRAY, clear_left, naming, only_run, write_bytes

from . import Sample
from .transforms import FLOW_STEPS, FLOW_UNKNOWN, Augment, Raw, Stack, centre_crop, lines
from .vimeo90k import TRAIN_LIST, Vimeo90K, read_list

INDEX, FRAMES, FLOW, CHECKSUMS, SOURCES = "index.json", "frames.npy", "flow.npy", "checksums.npy", "sources.npy"
REACH = (2**15 - 1) / FLOW_STEPS  # pixels; larger flow is marked as unknown
SPARE = 2e9  # bytes of GPU memory that a set must leave to the training


def is_packed(root: str | Path) -> bool:
    return (Path(root) / CHECKSUMS).is_file()


def read_index(root: str | Path) -> dict:
    """What a packed set holds. FileNotFoundError without the folder, ValueError where packing was not finished."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder; python -m datasets.packed makes one")
    path = Path(root) / INDEX
    if not path.is_file():
        raise ValueError(f"{root}: packing was not finished; run python -m datasets.packed again, it continues")
    return _read_plan(path)


def _read_plan(path: Path) -> dict:
    """What index.json and begun.json hold."""
    try:
        plan = json.loads(path.read_text())
        return {"names": list(map(str, plan["names"])), "flow": bool(plan["flow"])}
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path) from error


def _load(path: Path, mode: str | None = None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mode)
    except FileNotFoundError as error:
        raise _damaged(path, "missing") from error
    except BROKEN_ARRAY as error:
        raise _damaged(path) from error


def _check(root: Path, index: dict) -> None:
    """ValueError where the first or the last triplet is not as it was packed: where a copy was interrupted, arrays may
    be there that belong to what was packed before."""
    if index["flow"] and not (root / FLOW).is_file():
        return  # training with a teacher does without it, and a checksum covers both arrays
    arrays = [_load(root / name, "r") for name in (FRAMES, FLOW)[: 1 + index["flow"]]]
    checksums, count = _load(root / CHECKSUMS), len(index["names"])
    whole = all(len(array) == count for array in (checksums, *arrays))
    if not (whole and all(checksum(*(array[row] for array in arrays)) == checksums[row] for row in (0, -1))):
        raise ValueError(f"{root}: its files do not belong together; copy them again, or remove {root} and pack again")


def checksum(frames: np.ndarray, flow: np.ndarray | None = None) -> int:
    """The CRC of a triplet as it is packed; never 0, which means not written."""
    crc = zlib.crc32(frames)
    return (crc if flow is None else zlib.crc32(flow, crc)) or 1


def _damaged(path: Path, how: str = "cut short or damaged") -> ValueError:
    return ValueError(f"{path}: {how}; copy it again, or remove {path.parent} and pack again")


class Packed(Dataset):
    """A packed set, or some of its triplets, as Samples; for training a batch at a time.

    names: of the triplets, all where None. augment: for `batch`, which needs it. flow: whether to read the teacher's;
    None: where it was packed. Index with i for a sample to validate on: the centre of the frames.
    """

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str] | None = None,
        augment: Augment | None = None,
        flow: bool | None = None,
    ):
        self.root, self.augment = Path(root), augment
        index = read_index(root)
        position = {name: k for k, name in enumerate(index["names"])}
        # A name that is listed twice counts twice, as in the files.
        self.names = index["names"] if names is None else list(names)
        missing = [name for name in self.names if name not in position]
        if missing:
            what = f"{len(missing)} triplets of the list are not in this set, such as {missing[0]}"
            raise ValueError(f"{root}: {what}; pack a list with all of them, by --list and another --out")
        self.rows = [position[name] for name in self.names]
        self.flow = index["flow"] if flow is None else flow
        if self.flow and not index["flow"]:
            raise ValueError(f"{root}: was packed without flow")
        _check(self.root, index)
        self._open()

    def _open(self) -> None:
        self.frames = _load(self.root / FRAMES, "r")
        self.flows = _load(self.root / FLOW, "r") if self.flow else None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "frames": None, "flows": None}  # a memory map would be pickled with all that it maps

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.rows)

    def stack(self, index: int) -> Stack:
        """A triplet on the disk; its flow in fixed point."""
        row = self.rows[index]
        return Stack(self.frames[row], None if self.flows is None else self.flows[row], np.float32([0.5]))

    def __getitem__(self, index: int) -> Sample:
        stack = self.stack(index)
        if stack.flow is not None:
            stack = stack._replace(flow=decode(stack.flow))
        return centre_crop(stack).sample()

    def batch(self, keys: Sequence[tuple[int, int]]) -> Raw:
        """The crops of a batch of (index, epoch), copied once, from the map into the batch."""
        size = self.augment.size
        frames = np.empty((len(keys), self.frames.shape[1], size, size, 3), np.uint8)
        flow = np.empty((len(keys), *((0,) if self.flows is None else (size, size, 4))), np.int16)
        dice = []
        for k, (index, epoch) in enumerate(keys):
            stack = self.stack(index)
            dice.append(self.augment.copy(stack, index, epoch, frames[k], None if stack.flow is None else flow[k]))
        t = np.full((len(keys), 1), 0.5, np.float32)
        return Raw(*map(torch.from_numpy, (frames, flow, t)), torch.tensor(dice, dtype=torch.int64))


class Resident:
    """A packed set in a GPU's memory, from which batches are drawn. ValueError where it does not fit."""

    def __init__(self, packed: Packed, device: torch.device):
        if device.type != "cuda":
            raise ValueError("--cache gpu needs a GPU; leave the option out")
        self.names, self.augment, self.flow, self.device = packed.names, packed.augment, packed.flow, device
        arrays = [packed.frames] if packed.flows is None else [packed.frames, packed.flows]
        row = sum(array[0].nbytes for array in arrays)
        needed, free = row * len(packed.rows), torch.cuda.mem_get_info(device)[0]
        if needed + SPARE > free:
            raise ValueError(
                f"{packed.root}: --cache gpu takes {needed / 1e9:.0f} GB and {SPARE / 1e9:.0f} GB for training, "
                f"{free / 1e9:.0f} GB are free; leave the option out, or pack with --no_flow"
            )
        self.frames, *flows = (self._copy(array, packed.rows) for array in arrays)
        self.flows = flows[0] if flows else None

    def __len__(self) -> int:
        return len(self.frames)

    def _copy(self, array: np.ndarray, rows: list[int]) -> torch.Tensor:
        here = torch.empty((len(rows), *array.shape[1:]), dtype=getattr(torch, array.dtype.name), device=self.device)
        for k, row in enumerate(rows):
            here[k].copy_(torch.from_numpy(np.array(array[row])))
        return here

    def batch(self, keys: Sequence[tuple[int, int]]) -> Raw:
        """As Packed.batch, on the GPU; the dice are on the CPU, where `finish` wants them."""
        height, width = self.frames.shape[2:4]
        size, rows, columns, dice = self.augment.size, [], [], []
        for index, epoch in keys:
            one = self.augment.dice(index, epoch, height, width)
            y, top = lines(one.top, one.zoom, height, size)
            x, left = lines(one.left, one.zoom, width, size)
            rows.append(y)
            columns.append(x)
            dice.append(one._replace(top=top, left=left))
        each = ([index for index, _ in keys], rows, columns)
        index, y, x = (torch.from_numpy(np.array(numbers)).to(self.device, non_blocking=True) for numbers in each)
        index = index[:, None, None]
        frames = self.frames[index, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2, 4)
        flow = torch.empty((len(keys), 0), device=self.device)
        if self.flows is not None:
            flow = self.flows[index, y[:, :, None], x[:, None, :]]
        t = torch.full((len(keys), 1), 0.5, device=self.device)
        return Raw(frames, flow, t, torch.tensor(dice, dtype=torch.int64))


def encode(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels -> int16 steps of 1/64; unknown where it is NaN or beyond REACH."""
    return np.where(np.abs(flow) <= REACH, np.round(flow * FLOW_STEPS), FLOW_UNKNOWN).astype(np.int16)


def decode(flow: np.ndarray) -> np.ndarray:
    """int16 steps of 1/64 -> float32 pixels, NaN where unknown."""
    return np.where(flow == FLOW_UNKNOWN, np.float32(np.nan), flow / np.float32(FLOW_STEPS))


class _Packer:
    """One packing process: reads triplets, writes them into the maps, and checks what was written."""

    def __init__(self, source: Vimeo90K, out: Path):
        self.source = source
        self.frames, self.checksums, self.sources = (_load(out / name, "r+") for name in (FRAMES, CHECKSUMS, SOURCES))
        self.flows = _load(out / FLOW, "r+") if source.flow else None

    def write(self, row: int) -> int:
        """Returns the number of pixels whose flow is beyond REACH."""
        now, stack, name = state(self.source, row), self.source.stack(row), self.source.names[row]
        if stack.frames.shape != self.frames.shape[1:]:
            (height, width), (h, w) = self.frames.shape[2:4], stack.frames.shape[1:3]
            raise ValueError(
                f"{name}: {w}x{h}, but the set began with {width}x{height}; only equal sizes can be packed"
            )
        self.checksums[row] = 0  # until all is written
        self.frames[row], beyond = stack.frames, 0
        if self.flows is not None:
            self.flows[row] = encode(stack.flow)
            beyond = int((np.abs(stack.flow) > REACH).any(2).sum())
        self.sources[row], self.checksums[row] = now, self.checksum(row)
        return beyond

    def checksum(self, row: int) -> int:
        return checksum(self.frames[row], None if self.flows is None else self.flows[row])

    def is_whole(self, row: int) -> bool:
        return self.checksum(row) == self.checksums[row]


def state(source: Vimeo90K, row: int) -> int:
    """A CRC of the sizes and times of a triplet's files, to tell whether they are still those that were packed."""
    files = [path.stat() for paths in source.paths(row) for path in paths]
    return zlib.crc32(repr([(file.st_size, file.st_mtime_ns) for file in files]).encode())


_packer: _Packer | None = None  # of this process; set once, when the pool starts it


def _begin(source: Vimeo90K, out: Path) -> None:
    global _packer
    for kind in cli.STOPPING:  # the main process handles them for all, and ends this one by SIGTERM
        signal.signal(kind, signal.SIG_DFL if kind == signal.SIGTERM else signal.SIG_IGN)
    cli.end_with_parent()
    _packer = _Packer(source, out)


def _write(row: int) -> int:
    return _packer.write(row)


def _is_whole(row: int) -> bool:
    return _packer.is_whole(row)


def pack(source: Vimeo90K, out: Path, workers: int) -> None:
    """Write what is not written yet, check all of it, and then write the index."""
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    plan = {"names": source.names, "flow": bool(source.flow)}
    now = np.array([state(source, row) for row in range(len(source))], np.uint32)
    _prepare(source, out, plan)  # after `state`, which fails where a file is missing
    missing = np.flatnonzero((_load(out / CHECKSUMS) == 0) | (_load(out / SOURCES) != now)).tolist()
    if missing:
        (out / INDEX).unlink(missing_ok=True)
    print(f"{len(source)} triplets, {len(source) - len(missing)} of them packed before")
    _Packer(source, out)  # opened here first, so that an array that cannot be opened is named
    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(source, out))
    try:
        with cli.undisturbed():  # while the processes are started
            written = pool.map(_write, missing, chunksize=8)
        beyond = sum(tqdm(written, total=len(missing), desc="packing", disable=None))
        with cli.undisturbed():
            whole = pool.map(_is_whole, range(len(source)), chunksize=64)
        damaged = [
            row for row, good in enumerate(tqdm(whole, total=len(source), desc="checking", disable=None)) if not good
        ]
    except BrokenProcessPool as error:  # by the system: the arrays are sparse, and a map cannot report a full disk
        raise OSError(f"{out}: a packing process was killed; is the disk full? The same command continues") from error
    finally:
        pool.shutdown(cancel_futures=True)
    if damaged:
        (out / INDEX).unlink(missing_ok=True)  # where packing had been finished before the damage
        checksums = _load(out / CHECKSUMS, "r+")
        checksums[damaged] = 0
        checksums.flush()
        raise ValueError(
            f"{out}: {len(damaged)} triplets are damaged, such as {source.names[damaged[0]]}; run this again"
        )
    write_bytes(out / INDEX, json.dumps(plan).encode())
    if beyond:
        print(f"{beyond} pixels had flow beyond {REACH:.0f} pixels: marked as unknown")


def _prepare(source: Vimeo90K, out: Path, plan: dict) -> None:
    """Make the arrays, or check that the existing ones are for the same list."""
    begun = out / "begun.json"
    for path in (begun, out / INDEX):
        clear_left(path)
    frames = source.stack(0).frames.shape
    if known := [path for path in (begun, out / INDEX) if path.is_file()]:  # a copy may have the latter alone
        same, there = _read_plan(known[0]) == plan, _load(out / FRAMES, "r").shape[1:]
        if same and there == frames:
            return
        if _load(out / CHECKSUMS).any():
            what = f"frames of {there[2]}x{there[1]} are" if same else "another list or another choice of flow is"
            raise ValueError(f"{out}: {what} packed here; give another --out")
        begun.unlink(missing_ok=True)  # of a run that packed nothing
    shapes = {name: ((len(source),), np.uint32) for name in (CHECKSUMS, SOURCES)}
    shapes[FRAMES] = (len(source), *frames), np.uint8
    if source.flow:
        shapes[FLOW] = ((len(source), *frames[1:3], 4), np.int16)
    needed = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes.values())
    if needed > (free := shutil.disk_usage(out).free):
        raise ValueError(f"{out}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free; give another --out")
    (out / FLOW).unlink(missing_ok=True)  # left from a start with flow
    for name, (shape, kind) in shapes.items():
        with naming(out / name):
            np.lib.format.open_memmap(out / name, "w+", kind, shape).flush()
    write_bytes(begun, json.dumps(plan).encode())


def main(args: argparse.Namespace) -> None:
    names = read_list(args.data, args.list)
    source = Vimeo90K(args.data, names, flow=False if args.no_flow else None)
    with only_run(args.out):
        pack(source, Path(args.out), args.workers)
    size = sum(path.stat().st_size for path in Path(args.out).glob("*.npy"))
    flow = "with flow" if source.flow else "without flow"
    print(f"{args.out}: {len(names)} triplets {flow}, {size / 1e9:.2f} GB, every checksum right")


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data", default=str(cli.DATA / "vimeo_triplet"), help="folder of the set (%(default)s)")
    parser.add_argument("--out", default=str(cli.DATA / "vimeo_packed"), help="folder to write (%(default)s)")
    parser.add_argument("--list", default=TRAIN_LIST, help="which triplets (default: %(default)s)")
    parser.add_argument("--no_flow", action="store_true", help="leave the teacher's flow out")
    parser.add_argument("--workers", type=cli.positive, default=4, help="processes (default: %(default)s)")
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
