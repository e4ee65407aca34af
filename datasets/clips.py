"""Windows of neighbouring frames from your own footage: videos, folders of frames, Vimeo90K's septuplets.

Each clip is decoded once into a file, uint8 (F, H, W, 3), in a cache folder that may be deleted whenever nothing reads
from it (a minute of 1080p at 25 frames a second takes 9 GB); from then on any window is a slice of it. Windows with a
cut, a repeated frame or a leap in time are left out: motion between such frames is missing, or not where it should be
in time.
"""

import glob
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils import io
from utils.shots import find_breaks, leaps

from . import Sample
from .transforms import Augment, Dice, Raw, Stack, centre_crop, lines
from .vimeo90k import read_list

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".gif", ".y4m")
VIDEOS += (".wmv", ".flv", ".ts", ".mts", ".m2ts", ".3gp", ".ogv")
TRAIN_LISTS, TEST_LISTS = (tuple(f"{of}_{part}list.txt" for of in ("sep", "tri")) for part in ("train", "test"))
SEQUENCES = "sequences"  # the folder of all of Vimeo90K's
CACHE = Path(__file__).resolve().parent.parent / "data" / "clips_cache"
COPIED = 64  # frames copied to a device at a time
VERSION = 10  # of decoding and the search for breaks, in the names of cached files: raise it when one changes


class Frames:
    """The frames in a .npy file, (F, H, W, 3) uint8, sliced like an array. Each slice maps the file anew: a set may
    have more clips than a process may open files, and only the path is pickled for another process."""

    def __init__(self, path: Path):
        self.path, self.shape = path, np.load(path, mmap_mode="r").shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")[which]


class Clip(NamedTuple):
    """frames: (F, H, W, 3) uint8. breaks: (F - 1,) bool, whether frames i and i + 1 do not belong in one window,
    because of a cut, because the second repeats the first, or because more or less time lies between them than is
    usual in the clip."""

    name: str
    frames: Frames | np.ndarray
    breaks: np.ndarray

    @property
    def short_side(self) -> int:
        return min(self.frames.shape[1:3])


class Window(NamedTuple):
    """Frames start, start + stride, ... of a clip."""

    clip: Clip
    start: int
    length: int
    stride: int

    @property
    def name(self) -> str:
        return f"{self.clip.name}/{self.start:05d}"

    @property
    def frames(self) -> np.ndarray:
        """(N, H, W, 3) uint8, still on disk where the clip is."""
        return self.clip.frames[self.start : self.start + self.length * self.stride : self.stride]


def open_clips(
    folder: str | Path,
    only: Iterable[str] | None = None,
    longest: int | None = None,
    lists: Sequence[str] = TRAIN_LISTS,
) -> list[Clip]:
    """The clips of a folder, by name: its videos, and the folders below it that hold pictures; of Vimeo90K's
    sequences, those in the first of `lists` that is there.

    only: names to take. longest: clips whose longer side is greater are halved until it is not, which also cleans
    compressed video. FileNotFoundError without the folder, ValueError where it holds no clip, lacks a named one, or a
    clip cannot be decoded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of clips")
    found = {path.relative_to(folder).as_posix(): path for path in _sources(folder)}
    listed = next((folder / name for name in lists if (folder / name).is_file()), None)
    if only is None and listed:
        only = [(Path(SEQUENCES) / name).as_posix() for name in read_list(folder, listed.name, check=False)]
        if absent := sorted(set(only) - set(found)):
            raise ValueError(f"{listed}: {len(absent)} of its sequences are not there, such as {absent[0]}; copy them")
    only = None if only is None else set(only)
    missing = (only or set()) - set(found)
    if not found or missing or only == set():
        what = f"clip named {min(missing)}" if missing else f"videos ({', '.join(VIDEOS)}) and no folders of frames"
        raise ValueError(f"{folder}: no {what} in this folder")
    names = [name for name in found if only is None or name in only]
    return [_open(found[name], name, longest) for name in names]


def windows(clips: Sequence[Clip], length: int, stride: int = 1, step: int = 1) -> list[Window]:
    """All windows of `length` frames, `stride` apart, that start at every `step`-th frame and hold no break."""
    result = []
    for clip in clips:
        span = (length - 1) * stride
        broken = np.concatenate([[0], np.cumsum(clip.breaks)])
        for start in range(0, len(clip.frames) - span, step):
            if broken[start + span] == broken[start]:
                result.append(Window(clip, start, length, stride))
    return result


def split(
    folder: str | Path,
    length: int,
    stride: int = 1,
    least: int = 0,
    longest: int | None = None,
    held: Iterable[str] | None = None,
) -> tuple[list[Window], list[Window]]:
    """Windows to train on and, from other clips, windows to validate on, which share at most one frame with the next.

    least: the smallest side; smaller clips are left out, with a warning. longest: as in `open_clips`. held: the clips
    to validate on; None: clips from the end of the list that hold 1 % of all windows, or, if these are all there are,
    the last 5 % of the windows. ValueError where nothing is left to train or validate on.
    """
    clips = open_clips(folder, longest=longest)
    if held is not None:
        within = Path(folder) / SEQUENCES  # they are listed by their names in there
        held = {f"{SEQUENCES}/{name}" if (within / name).is_dir() else name for name in held}
        more = held - {clip.name for clip in clips}  # which the training list leaves out
        clips += open_clips(folder, more, longest=longest) if more else []
    clips, counts = _usable(folder, clips, length, stride, least)
    chosen, step = set(_last(counts) if held is None else held), (length - 1) * stride
    if not chosen <= set(counts):
        name = min(chosen - set(counts))
        raise ValueError(f"{folder}: no clip named {name} to validate on, {least}x{least} or larger")
    train = windows([clip for clip in clips if clip.name not in chosen], length, stride)
    val = windows([clip for clip in clips if clip.name in chosen], length, stride, step)
    if not train and held is None:  # a single clip: its end
        whole = windows(clips, length, stride)
        border = whole[-max(len(whole) // 20, 1)].start if whole else 0
        train, val = [w for w in whole if w.start + step < border], [w for w in whole if w.start >= border][::step]
    if not (train and val):
        what = f"{length} frames, {stride} apart, {least}x{least} or larger"
        way = "add clips, or give a smaller --crop or --clip_stride"
        raise ValueError(f"{folder}: too few windows of {what}, to train on some and validate on others; {way}")
    return train, val


def _usable(
    folder: str | Path, clips: list[Clip], length: int, stride: int, least: int
) -> tuple[list[Clip], dict[str, int]]:
    """The clips that are large enough, and by name how many windows each has; warns of those that give none."""
    small = [clip.name for clip in clips if clip.short_side < least]
    if small:
        warnings.warn(f"{folder}: left out, smaller than {least}x{least}: {', '.join(small)}", stacklevel=3)
    clips = [clip for clip in clips if clip.name not in small]
    counts = {clip.name: len(windows([clip], length, stride)) for clip in clips}
    none = [name for name in counts if not counts[name]]
    if len(none) in range(1, len(counts)):  # if it is all of them, an error of `split` says so
        what = f"left out, no {length} frames, {stride} apart, without a cut, a repeat or a leap in time"
        warnings.warn(f"{folder}: {what}: {', '.join(none)}", stacklevel=3)
    return clips, counts


def _last(counts: dict[str, int]) -> list[str]:
    """The clips at the end of the list that together hold 1 % of the windows."""
    names, taken = [name for name in counts if counts[name]], []
    while names and sum(counts[name] for name in taken) < sum(counts.values()) / 100:
        taken.append(names.pop())
    return taken


class Windows(Dataset):
    """Windows as Samples: the first and last frames go in, all between are targets, at t = k / (N - 1); no flow.

    windows: anything with `name` and `frames`. augment: for training, gives Raw; without it a sample is the centre of
    the frames, at most `limit` pixels a side. Index with i, or (i, epoch) for augmentation that differs from epoch to
    epoch.
    """

    def __init__(self, windows: Sequence[Window], augment: Augment | None = None, limit: int | None = None):
        self.windows, self.augment, self.limit = list(windows), augment, limit

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def names(self) -> list[str]:
        return [window.name for window in self.windows]

    def stack(self, index: int) -> Stack:
        frames = self.windows[index].frames
        return Stack(frames, None, np.arange(1, len(frames) - 1, dtype=np.float32) / (len(frames) - 1))

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | Raw:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        stack = self.stack(index)
        if self.augment:
            return self.augment(stack, index, epoch)
        return centre_crop(stack, limit=self.limit).sample()


class Crop(NamedTuple):
    """A crop of some frames of a window. moments: their numbers in the window, the first and the last included.
    halved: whether the frames are halved first; dice: what happens to them then."""

    window: Window
    moments: tuple[int, ...]
    halved: bool
    dice: Dice

    @property
    def t(self) -> np.ndarray:
        """The times of the frames between, (N - 2,)."""
        return np.float32(self.moments[1:-1]) / (self.window.length - 1)

    def stack(self) -> Stack:
        """The whole frames."""
        frames = self.window.frames
        frames = [frames[i] for i in self.moments]
        if self.halved:
            height, width = (side // 2 * 2 for side in frames[0].shape[:2])
            frames = [halved(frame[:height, :width]) for frame in frames]
        return Stack(frames, None, self.t)


class Places(NamedTuple):
    """Where crops lie in the pixels of a Resident. B: crops, N: their frames."""

    first: Tensor  # (B, N), the first pixel of a frame
    rows: Tensor  # (B, size), from there to a row
    columns: Tensor  # (B, size), from there to a pixel
    more: Tensor  # (B, 2), to the pixels below and beside in a square of 2x2; 0 without one
    t: Tensor
    dice: Tensor


class Resident:
    """Clips in the memory of a device, where a batch of crops is cut out of them at once."""

    def __init__(self, clips: Sequence[Clip], device: torch.device):
        ends = np.cumsum([0, *(int(np.prod(clip.frames.shape[:3])) for clip in clips)]).tolist()
        self.starts = dict(zip((clip.name for clip in clips), ends))
        self.pixels = torch.empty(ends[-1], 3, dtype=torch.uint8, device=device)
        for clip, place in zip(clips, ends):
            for start in range(0, len(clip.frames), COPIED):
                part = torch.from_numpy(np.array(clip.frames[start : start + COPIED])).view(-1, 3)
                self.pixels[place : place + len(part)] = part
                place += len(part)

    def places(self, crops: Sequence[Crop], size: int) -> Places:
        """Where the crops lie: all the work on the CPU, which another process may do, too."""
        count = len(crops)
        rows, columns = np.empty((2, count, size), np.int64)
        first, more, dice = np.empty((count, len(crops[0].moments)), np.int64), np.empty((count, 2), np.int64), []
        for i, (window, moments, halved, rolled) in enumerate(crops):
            _, height, width, _ = window.clip.frames.shape
            step = 1 + halved
            y, top = lines(rolled.top, rolled.zoom, height // step, size)
            x, left = lines(rolled.left, rolled.zoom, width // step, size)
            rows[i], columns[i] = step * width * y, step * x
            frames = window.start + window.stride * np.array(moments)
            first[i] = self.starts[window.clip.name] + height * width * frames
            more[i] = width * halved, int(halved)  # to the other pixels of a square of 2x2, or 0
            dice.append(rolled._replace(top=top, left=left))
        t = torch.from_numpy(np.stack([crop.t for crop in crops]))
        return Places(*map(torch.from_numpy, (first, rows, columns, more)), t, torch.tensor(dice, dtype=torch.int64))

    def take(self, places: Places) -> Raw:
        """As transforms.take of each crop's stack, its frames on the device."""
        first, rows, columns, more = (x.to(self.pixels.device, non_blocking=True) for x in places[:4])
        place = first[:, :, None, None] + rows[:, None, :, None] + columns[:, None, None]
        below, right = more[:, :, None, None, None].unbind(1)
        squares = (self.pixels[place + move].int() for move in (0, below, right, below + right))
        frames = ((sum(squares) + 2) >> 2).to(torch.uint8)
        return Raw(frames, torch.empty(len(frames), 0), places.t, places.dice)


def _sources(folder: Path, *above: Path) -> Iterator[Path]:
    """The clips of a folder. above: the folders that it lies in; what links to one of them is left out, as its clips
    would be found again and again."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in VIDEOS:
            yield path
        elif path.is_dir() and not any(map(path.samefile, (folder, *above))):
            if any(io.is_picture(child) for child in path.iterdir()):
                yield path
            yield from _sources(path, folder, *above)


def _open(path: Path, name: str, longest: int | None) -> Clip:
    files = io.list_images(path) if path.is_dir() else [path]
    stem = f"{path.stem[:40]}-{_digest(path.resolve(), longest)}"  # a name has 255 bytes at most
    current = f"{stem}-{_digest(io.states(files), VERSION)}"
    frames, breaks = (CACHE / f"{current}.{part}.npy" for part in ("frames", "breaks"))
    if clip := _cached(name, frames, breaks):
        return clip
    with io.alone_in(CACHE) as alone:
        if clip := _cached(name, frames, breaks):  # another rank was here before
            return clip
        # The clip before it changed, and what a kill left; or else what another rank is writing.
        for start in (stem, f".{stem}") if alone else ():
            for old in CACHE.glob(f"{glob.escape(start)}-*.npy"):
                old.unlink(missing_ok=True)
        _write(path, longest, files, frames, breaks)
    return Clip(name, Frames(frames), np.load(breaks))


def _cached(name: str, frames: Path, breaks: Path) -> Clip | None:
    """The clip in these files; None where they are not there, or broken, as a power failure may leave them."""
    try:
        clip = Clip(name, Frames(frames), np.load(breaks))
    except (FileNotFoundError, *io.BROKEN_ARRAY):
        return None
    return clip if len(clip.frames) == len(clip.breaks) + 1 else None  # the count of frames is written last of all


def _write(path: Path, longest: int | None, files: list[Path], frames: Path, breaks: Path) -> None:
    """Decode a clip into the files `frames` and `breaks`. files: of the clip."""
    times = []
    with io.replacing(frames) as temporary, open(temporary, "wb") as file:
        found = find_breaks(_saved((_shrink(frame, longest) for frame in _decode(path, times)), file))
    found[[*io.gaps(files), *leaps(times)]] = True
    with io.replacing(breaks) as temporary, open(temporary, "wb") as file:
        np.save(file, found)


def _digest(*what: object) -> str:
    return hashlib.sha256(repr([str(part) for part in what]).encode()).hexdigest()[:16]


def _saved(frames: Iterable[np.ndarray], file: BinaryIO) -> Iterator[np.ndarray]:
    """Yield the frames while writing them to the file as one array: an hour of them would not fit into memory."""
    count = 0
    for count, frame in enumerate(frames, start=1):
        if count == 1:
            shape = frame.shape
            _write_header(file, 0, shape)  # NumPy leaves room in it for any number of frames
        file.write(frame.tobytes())
        yield frame
    file.seek(0)
    _write_header(file, count, shape)


def _write_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, about)


def _decode(path: Path, times: list) -> Iterator[np.ndarray]:
    """Yield the frames of a clip; a video's times are then in the list, if the file holds them."""
    if path.is_dir():
        frames = map(io.read_image, io.list_images(path))
    else:
        frames = _decode_video(path, times)
    size = None
    for frame in frames:
        size = size or frame.shape
        if frame.shape != size:
            sizes = f"{size[1]}x{size[0]} and {frame.shape[1]}x{frame.shape[0]}"
            raise ValueError(f"{path}: frames of different sizes, {sizes}")
        yield frame
    if size is None:
        raise ValueError(f"{path}: no frames in this video")


def _decode_video(path: Path, times: list) -> Iterator[np.ndarray]:
    from utils import containers  # here, because other data sets do not need PyAV

    turn = None
    with containers.opened(path) as container:
        for packet in containers.to_decode(container, containers.video_stream(container, path)):
            for frame in packet.decode():
                times.append(frame.pts)
                if turn is None:  # of the first: H.264 may tell it of keyframes alone
                    filters = containers.TURNS.get(containers.upright_sides(frame), ())
                    size = frame.width, frame.height, frame.format.name
                    turn = containers.filtering(filters, *size, frame.time_base)
                yield turn(frame).to_ndarray(format="rgb24")
        if containers.misleads(container, times):
            times.clear()


def _shrink(frame: np.ndarray, longest: int | None) -> np.ndarray:
    while longest and max(frame.shape[:2]) > longest:
        frame = halved(frame)
    return frame


def halved(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 at half the size, every pixel the mean of four, where both sides are even."""
    height, width = frame.shape[:2]
    return cv2.resize(frame, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
