"""Files and folders, and pictures in and out: PNG, JPEG, PPM. Optical flow is read and written by flow_files.py.

Pictures are RGB uint8 (H, W, 3). A reader raises FileNotFoundError, or ValueError naming the file, for one that is cut
short or is not what its name says. A writer writes to a temporary name and renames, so that a file with its final name
is whole.
"""

import glob
import hashlib
import mmap
import os
import platform
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import TextIO

import cv2
import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

from . import distributed

PNG, JPEG, PPM = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"P6"
IMAGES = {".png": PNG, ".jpg": JPEG, ".jpeg": JPEG, ".ppm": PPM}
PPM_HEADER = re.compile(rb"P6(?:\s+#[^\n]*)*\s+(\d+)(?:\s+#[^\n]*)*\s+(\d+)(?:\s+#[^\n]*)*\s+(\d+)\s")
TOLD = mmap.mmap(-1, 2)  # a byte for each kind of loss, 1 once warned of; shared with forked processes
BITS, TRANSPARENCY = range(2)
LOCK = ".lock"  # a file in a folder that one process at a time works in
JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
JPEG_ALONE = {bytes([0x01]), *(bytes([number]) for number in range(0xD0, 0xD9))}  # markers without length or content
PNG_WITH_ALPHA = (4, 6)  # colour types, in byte 25
# Raised by numpy.load for a file that is cut short or damaged: it reads the header as Python.
BROKEN_ARRAY = ValueError, EOFError, TokenError, SyntaxError, TypeError, OverflowError


def read_bytes(path: str | Path) -> bytes:
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path.read_bytes()


@contextmanager
def naming(path: str | Path, instead: Path | None = None) -> Iterator[None]:
    """Let an OSError that names no file, as of a write to an open one on a full disk, name `path`; also one that names
    the file `instead`."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, instead and str(instead)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def replacing(path: str | Path, folder: Path | None = None) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end, removed if anything goes wrong. Makes the folder.

    folder: where the temporary file goes instead of beside `path`, on the same disk; the caller removes what a kill
    leaves there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (folder or path.parent) / f".{_stem(path)}.{platform.node()}.{os.getpid()}{path.suffix}"
    try:
        with naming(path, instead=temporary):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_left(path: str | Path) -> None:
    """Remove what processes that were killed while `replacing` a file have left; for the only one that writes it."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(_stem(path))}.*"):
        left.unlink(missing_ok=True)


def _stem(path: Path) -> str:
    # A name has 255 bytes at most, and on Linux any bytes, also such as are no UTF-8.
    return path.stem.encode(errors="ignore")[:100].decode(errors="ignore")


@contextmanager
def alone_in(folder: str | Path) -> Iterator[bool]:
    """One process per machine at a time: others that enter with the same folder wait. Makes the folder. Yields whether
    it is so: on Windows, or on a disk without locks, each process does the same work, beside the others."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except (ImportError, OSError):
            alone = False
        yield alone


@contextmanager
def only_run(folder: str | Path) -> Iterator[None]:
    """Lock a folder for this run (its main rank does so for all); it is made, and removed if it is empty at the end.
    ValueError where another run holds it. Child processes do not inherit the lock."""
    if not distributed.is_main():
        yield
        return
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    file = _locked(lock)
    try:
        yield
    finally:
        if file is not None:
            lock.unlink(missing_ok=True)
            file.close()
        with suppress(OSError):  # those that are not empty stay
            for path in made or [folder]:
                path.rmdir()


def _locked(path: Path) -> TextIO | None:
    """An open file whose lock this process holds until it closes it; None on a system without locks. ValueError where
    another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        file = open(path, "a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise ValueError(f"{path.parent}: another run is at work here; wait for its end, or end it") from None
        except OSError:  # a disk without locks
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # the previous holder removed it in the meantime


def check_writable(folder: str | Path) -> None:
    """OSError where nothing can be written into a folder, which need not be there yet; it is not made."""
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there}: is a file, not a folder to write to; give another name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there}: this folder is not writable; give another one")


def states(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """The name, size and modification time of files, to tell whether they are still the same."""
    return [(path.name, (state := path.stat()).st_size, state.st_mtime_ns) for path in paths]


def sha256(path: str | Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def write_bytes(path: str | Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


# Pictures


def read_image(path: str | Path, deep: bool = False) -> np.ndarray:
    """A picture as RGB uint8 (H, W, 3); grey becomes RGB, and it is turned as its Exif data say. deep: as uint16, from
    0 to 65535.

    Transparency is dropped, and, unless `deep`, more than 8 bits per colour become 8; a warning names the first such
    picture of a run.
    """
    path = Path(path)
    data, magic = _read_whole(path)
    image = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    top = _top(data, magic)
    if magic == PPM and top not in (255, 65535):  # OpenCV assumes one of these two as the largest value
        image = _decode(path, data, cv2.IMREAD_UNCHANGED)
        if deep:
            image = (image * np.float32(65535 / top)).round().astype(np.uint16)
        else:
            image = cv2.convertScaleAbs(image, alpha=255 / top)
    if deep and image.dtype == np.uint8:
        image = image * np.uint16(257)
    elif not deep and image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)  # rounded; OpenCV itself would cut off the lower byte
    if top > 255 and not deep:
        _tell(BITS, f"{path}: more than 8 bits per colour; 8 are kept, in all such pictures")
    transparent = magic == PNG and (data[25] in PNG_WITH_ALPHA or b"tRNS" in data[: data.find(b"IDAT")])
    if transparent and not TOLD[TRANSPARENCY]:
        whole = _decode(path, data, cv2.IMREAD_UNCHANGED)
        if whole.ndim == 3 and whole.shape[2] in (2, 4) and whole[..., -1].min() < np.iinfo(whole.dtype).max:
            _tell(TRANSPARENCY, f"{path}: transparency is lost, in all such pictures; colours are taken as they are")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # forty times as fast as [..., ::-1].copy()


def is_deep(path: str | Path) -> bool:
    """Whether a picture has more than 8 bits per colour."""
    return _top(*_read_whole(Path(path))) > 255


def read_unchanged(path: str | Path) -> np.ndarray:
    """A picture's values as the file holds them, 8 or 16 bits: (H, W), or (H, W, C) in OpenCV's order of colours."""
    path = Path(path)
    return _decode(path, _read_whole(path)[0], cv2.IMREAD_UNCHANGED)


def png_size(path: str | Path) -> tuple[int, int]:
    """(height, width) that `read_image` gives a PNG file, decoded only where Exif data may turn it. ValueError where it
    is not one."""
    data = read_bytes(path)
    if not data.startswith(PNG) or len(data) < 24:
        raise _damaged(Path(path))
    if b"eXIf" in data:
        return read_image(path).shape[:2]
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def write_image(path: str | Path, image: np.ndarray) -> None:
    """RGB uint8 (H, W, 3) as PNG, JPEG or PPM, by the name's ending; uint16 as PNG or PPM. ValueError for all else."""
    path = Path(path)
    form = IMAGES.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"{path}: unknown picture format; end the name in {', '.join(IMAGES)}")
    kinds = ("uint8",) if form == JPEG else ("uint8", "uint16")
    if image.dtype.name not in kinds or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} of shape {image.shape}"
        raise ValueError(f"{path}: {what}; RGB (H, W, 3) as {' or '.join(kinds)} is needed")
    try:
        done, data = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(image[..., ::-1]))
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"{path}: no picture of {image.shape[1]}x{image.shape[0]} can be written in this format")
    write_bytes(path, data.tobytes())


def read_frames(paths: Sequence[str | Path]) -> np.ndarray:
    """Pictures of one size as (N, H, W, 3) uint8. ValueError that names the first one of another size."""
    frames = [read_image(path) for path in paths]
    for path, frame in zip(paths, frames):
        if frame.shape != frames[0].shape:
            (height, width), (h, w) = frame.shape[:2], frames[0].shape[:2]
            raise ValueError(f"{path}: {width}x{height}, but {paths[0]} is {w}x{h}; frames must have one size")
    return np.stack(frames)


def write_gif(path: str | Path, frames: np.ndarray, seconds: float) -> None:
    """RGB uint8 (N, H, W, 3) as an animation that repeats, each frame shown for `seconds`."""
    with replacing(path) as temporary:
        imageio.imwrite(temporary, frames, plugin="pillow", extension=".gif", duration=1000 * seconds, loop=0)


def list_images(folder: str | Path, below: bool = False) -> list[Path]:
    """The pictures of a folder, with `below` also of its subfolders, but for hidden ones, in the order of their names,
    numbers by value. ValueError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    within = folder.rglob("*") if below else folder.iterdir()
    pictures = (path for path in within if is_picture(path) and not path.is_dir())
    found = [path for path in pictures if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not found:
        raise ValueError(f"{folder}: no pictures in this folder; {', '.join(IMAGES)} are looked for")
    return sorted(found, key=lambda path: (natural(path), path.parts))


def is_picture(path: Path) -> bool:
    """By its name; hidden files do not count."""
    return path.suffix.lower() in IMAGES and not path.name.startswith(".")


def natural(path: Path) -> list:
    """A sort key under which frame10 comes after frame9."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", path.name)]


def gaps(paths: Sequence[Path]) -> list[int]:
    """The places of a video's pictures after which some are missing: their number jumps by twice the usual or more."""
    parts = [re.fullmatch(r"(.*?)(\d+)", path.stem) for path in paths]
    if not all(parts) or len({part[1] for part in parts}) > 1:
        return []
    steps = np.diff([int(part[2]) for part in parts]).tolist()
    usual = max(set(steps), key=steps.count, default=0)
    return [place for place, step in enumerate(steps) if step >= 2 * usual > 0]


def warn_of_gaps(paths: Sequence[Path]) -> None:
    """Warn where pictures of a video are missing: frames between two neighbours are then not where they seem."""
    for place in gaps(paths)[:1]:
        warnings.warn(f"{paths[place].parent}: frames are missing after {paths[place].name}", stacklevel=2)


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, with a byte order mark or without. ValueError where it is none."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8; save it as one") from error


def to_float(image: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """RGB uint8 or uint16 (..., H, W, 3) -> float32 (..., 3, H, W) in [0, 1] on a device, copied there as integers."""
    frame = torch.from_numpy(np.require(image, requirements="CW"))
    if torch.device(device).type == "cuda":
        frame = frame.pin_memory()  # then only the GPU waits for the copy, in the order of its work
    return frame.to(device, non_blocking=True).movedim(-1, -3).contiguous().float() / np.iinfo(image.dtype).max


def to_uint8(frame: Tensor) -> np.ndarray:
    """Float (..., 3, H, W) in [0, 1] -> RGB uint8 (..., H, W, 3), rounded."""
    return (frame.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu().numpy()


def _read_whole(path: Path) -> tuple[bytes, bytes]:
    """A picture's bytes and its format. ValueError where it is not one, or cut short: decoders silently fill what is
    missing with grey."""
    data, magic = read_bytes(path), IMAGES.get(path.suffix.lower())
    if magic is None:
        raise ValueError(f"{path}: unknown picture format; {', '.join(IMAGES)} can be read")
    if not data.startswith(magic):
        raise ValueError(f"{path}: not a {path.suffix[1:].upper()} file, whatever its name says")
    whole = {PNG: _png_whole, JPEG: _jpeg_whole, PPM: _ppm_whole}[magic]
    if not whole(data):
        raise _damaged(path)
    return data, magic


def _top(data: bytes, magic: bytes) -> int:
    """The largest value that a picture's colours can have."""
    return int(PPM_HEADER.match(data)[3]) if magic == PPM else 2 ** data[24] - 1 if magic == PNG else 255


def _decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # such as more pixels than OpenCV takes
        raise ValueError(f"{path}: cannot be decoded ({error.err}); make it smaller, or copy it again") from error
    if image is None:
        raise _damaged(path)
    return image


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path}: the picture is cut short or damaged; copy or make it again")


def _tell(loss: int, text: str) -> None:
    """Warn, once per run."""
    if not TOLD[loss]:
        TOLD[loss] = 1
        if distributed.is_main():
            warnings.warn(text, stacklevel=4)


def _png_whole(data: bytes) -> bool:
    position = len(PNG)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or zlib.crc32(data[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return False
        if kind == b"IEND":
            return True
        position = end
    return False


def _jpeg_whole(data: bytes) -> bool:
    """Whether the first picture is complete; phones append videos to it."""
    position, scans = 2, 0
    while marker := JPEG_MARKER.search(data, position):
        position = marker.end()
        if marker[1] == b"\xd9":
            return scans > 0
        if marker[1] not in JPEG_ALONE:  # all others state their length; the data after a scan's header are searched
            position += int.from_bytes(data[position : position + 2], "big")
            scans += marker[1] == b"\xda"
    return False


def _ppm_whole(data: bytes) -> bool:
    header = PPM_HEADER.match(data)
    if not header:
        return False
    width, height, top = map(int, header.groups())
    return len(data) - header.end() >= width * height * (6 if top > 255 else 3)
