"""Optical flow in and out: .flo, KITTI's 16-bit PNG, PFM, .f16.

Flow is float32 (H, W, 2), (dx, dy) in pixels. Errors are those of io.py.
"""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from .io import read_bytes, read_unchanged, write_bytes

FLO_MAGIC = b"PIEH"  # 202021.25 as a float32: the Middlebury flow format
KITTI_ZERO, KITTI_STEPS = 2**15, 64  # the KITTI flow format: steps of 1/64 pixel around 2^15
KITTI_REACH = (2**15 - 1) / KITTI_STEPS  # pixels; it holds a little less than 512
# Rows minus the row above, and a little more effort: against the defaults a flow is 1.3 times smaller and read 1.4
# times faster, because most of the time goes into decoding symbols and there are fewer of them.
KITTI_PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP, cv2.IMWRITE_PNG_COMPRESSION, 4)
KITTI_PNG += (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT)
F16_MAGIC = b"FL16"
F16_REACH = 65504  # the largest float16


def read_flow(path: str | Path) -> np.ndarray:
    """Flow as float32 (H, W, 2), by the name's ending; pixels marked invalid in a KITTI file are NaN."""
    return _flow_format(path).read(path)


def write_flow(path: str | Path, flow: np.ndarray) -> None:
    """Flow (H, W, 2), by the name's ending. ValueError where the format cannot hold it: beyond 512 pixels in a .png."""
    form, flow = _flow_format(path), np.asarray(flow, np.float32)
    if flow.ndim != 3 or flow.shape[2] != 2 or not flow.size:
        raise ValueError(f"{path}: flow of shape {flow.shape}; (height, width, 2) is needed")
    form.write(path, flow)


def read_flo(path: str | Path) -> np.ndarray:
    return _read_values(path, FLO_MAGIC, "<f4")


def write_flo(path: str | Path, flow: np.ndarray) -> None:
    height, width = flow.shape[:2]
    write_bytes(path, FLO_MAGIC + struct.pack("<ii", width, height) + flow.astype("<f4").tobytes())


def read_kitti(path: str | Path) -> np.ndarray:
    image = read_unchanged(path)
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{path}: not a KITTI flow file: 16-bit RGB is needed")
    valid, dy, dx = image.transpose(2, 0, 1)
    flow = np.empty((*valid.shape, 2), np.float32)
    # One component at a time: numpy takes four times as long to reverse the order of the channels.
    np.subtract(dx, np.float32(KITTI_ZERO), out=flow[..., 0])
    np.subtract(dy, np.float32(KITTI_ZERO), out=flow[..., 1])
    flow *= np.float32(1 / KITTI_STEPS)
    if not valid.all():
        flow[valid == 0] = np.nan
    return flow


def write_kitti(path: str | Path, flow: np.ndarray) -> None:
    """Pixels whose flow is NaN are marked invalid."""
    invalid = np.isnan(flow).any(2)
    _check_reach(path, flow[~invalid], KITTI_REACH, "the KITTI format")
    steps = np.round(np.where(invalid[..., None], 0, flow) * KITTI_STEPS) + KITTI_ZERO
    image = np.dstack([~invalid, steps[..., 1], steps[..., 0]]).astype(np.uint16)
    write_bytes(path, cv2.imencode(".png", image, KITTI_PNG)[1].tobytes())


def read_f16(path: str | Path) -> np.ndarray:
    """FL16, width and height as int32, then dx, dy of each pixel as float16, little-endian: half the size of a .flo."""
    return _read_values(path, F16_MAGIC, "<f2")


def write_f16(path: str | Path, flow: np.ndarray) -> None:
    """Flow to within 2^-11 of its length: 1/128 pixel at 16 pixels."""
    _check_reach(path, flow[~np.isnan(flow)], F16_REACH, "a .f16 file")
    height, width = flow.shape[:2]
    write_bytes(path, F16_MAGIC + struct.pack("<ii", width, height) + flow.astype("<f2").tobytes())


def _check_reach(path: str | Path, flow: np.ndarray, reach: float, form: str) -> None:
    most = np.abs(flow).max(initial=0)
    if not most <= reach:
        raise ValueError(f"{path}: {form} holds flow within {reach:.0f} pixels, not {most:g}; use .flo")


def _read_values(path: str | Path, magic: bytes, kind: str) -> np.ndarray:
    """A .flo or .f16 file: the magic, width and height, the values."""
    data = read_bytes(path)
    if len(data) < 12 or data[:4] != magic:
        raise ValueError(f"{path}: not a {Path(path).suffix} file: it does not begin with {magic.decode()}")
    width, height = struct.unpack_from("<ii", data, 4)
    expected = 12 + width * height * 2 * np.dtype(kind).itemsize
    if width <= 0 or height <= 0 or len(data) != expected:
        raise ValueError(f"{path}: a flow of {width}x{height} takes {expected} bytes, not {len(data)}")
    return np.frombuffer(data, kind, offset=12).reshape(height, width, 2).astype(np.float32)


def read_pfm(path: str | Path) -> np.ndarray:
    """Three channels, of which flow is the first two; the lowest row comes first. A negative scale: little-endian."""
    data = read_bytes(path)
    header = re.match(rb"P([Ff])\s+(\d+)\s+(\d+)\s+(-?\d+(?:\.\d*)?)\s", data)
    if not header:
        raise ValueError(f"{path}: not a PFM file")
    if header[1] == b"f":
        raise ValueError(f"{path}: not flow: the file has one channel")
    (width, height), scale = map(int, header.group(2, 3)), float(header[4])
    expected, found = width * height * 3 * 4, len(data) - header.end()
    if found != expected:
        raise ValueError(f"{path}: {width}x{height} takes {expected} bytes of values, not {found}")
    values = np.frombuffer(data, "<f4" if scale < 0 else ">f4", offset=header.end())
    return values.reshape(height, width, 3)[::-1, :, :2].astype(np.float32)


def write_pfm(path: str | Path, flow: np.ndarray) -> None:
    height, width = flow.shape[:2]
    values = np.pad(flow[::-1], ((0, 0), (0, 0), (0, 1))).astype("<f4")
    write_bytes(path, f"PF\n{width} {height}\n-1.0\n".encode() + values.tobytes())


class _FlowFormat(NamedTuple):
    read: Callable[[str | Path], np.ndarray]
    write: Callable[[str | Path, np.ndarray], None]


FLOWS = {
    ".flo": _FlowFormat(read_flo, write_flo),
    ".png": _FlowFormat(read_kitti, write_kitti),
    ".f16": _FlowFormat(read_f16, write_f16),
    ".pfm": _FlowFormat(read_pfm, write_pfm),
}


def _flow_format(path: str | Path) -> _FlowFormat:
    form = FLOWS.get(Path(path).suffix.lower())
    if form is None:
        raise ValueError(f"{path}: unknown flow format; {', '.join(FLOWS)} are known")
    return form
