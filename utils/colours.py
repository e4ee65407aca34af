"""The colours of video: the numbers that describe them, what is assumed without those, and the conversion to RGB."""

import re
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

# FFmpeg's own defaults are one to two grey levels off, and do not interpolate chroma.
ACCURATE_RND, FULL_CHR_H_INT = 0x40000, 0x2000  # FFmpeg's numbers; PyAV names them from 18 on
TO_RGB = int(Interpolation.BILINEAR) | ACCURATE_RND | FULL_CHR_H_INT
FROM_RGB = int(Interpolation.AREA) | ACCURATE_RND
# For conversions that copy brightness: FFmpeg writes past the end of a row, into the next one. That is made later, but
# not if it is another thread's; in frames of more than 8 bits some of the pixels at its beginning then become others.
THREADS = 1
SHALLOW, DEEP = "rgb24", "rgb48le"  # RGB of 8 bits per colour, and of 16
DEEP_OF_YUV = "gbrp16le"  # gives the same array; FFmpeg's way from 4:2:0 to rgb48 is wrong where chroma is interpolated
UNKNOWN, LIMITED, FULL = 2, 1, 2  # FFmpeg's numbers for an unspecified matrix, and for the two ranges
RGB, BT709, BT601 = 0, 1, 5
BT2020, PQ, HLG = 9, 16, 18  # primaries of large gamuts, and the transfer of HDR
MATRICES = {BT709, 4, 7, 9}  # those with a conversion of their own: also FCC, SMPTE 240M, BT.2020
LARGEST_SD = 576  # rows up to which an unspecified matrix is BT.601, as players assume
GREY = re.compile(r"^gray(?=$|\d+[lb]e$)")  # formats without chroma, of any depth
SWAPPED = re.compile(r"(rgb|bgr)5[56]5be")  # RGB of 16 bits a pixel, as in QuickTime
# Formats that are made by way of 16 bits, in the full range: FFmpeg's chroma there is half a level too low, of however
# many bits, and what is grey greenish.
FINER = re.compile(r"^(yuv4(?:20|22|44)p).*")
LAYOUT = re.compile(r"^(gray|yuv\d+p).*")  # the name of a format without its bits


class Colour(NamedTuple):
    """FFmpeg's numbers for matrix, range, primaries and transfer, as the input has them."""

    matrix: int = UNKNOWN
    range: int = 0
    primaries: int = UNKNOWN
    transfer: int = UNKNOWN

    def conversion(self, height: int) -> tuple[int, ColorRange]:
        """The matrix and range that a conversion from or to RGB uses."""
        guess = BT601 if height <= LARGEST_SD else BT709
        matrix = guess if self.matrix == UNKNOWN else self.matrix if self.matrix in MATRICES else BT601
        return matrix, ColorRange.JPEG if self.range == FULL else ColorRange.MPEG

    @property
    def beyond_sdr(self) -> bool:
        return self.primaries == BT2020 or self.transfer in (PQ, HLG)


def to_rgb(frame: av.VideoFrame, colour: Colour, reformatter: VideoReformatter, deep: bool = False) -> np.ndarray:
    """RGB uint8 (H, W, 3), by the matrix and range of `colour`, within one grey level; deep: uint16, 65535 is white,
    within 1/50 grey level of 8 bits."""
    name, rgb = frame.format.name, is_rgb(frame)
    matrix, extent = colour.conversion(frame.height)
    full = rgb or extent == ColorRange.JPEG or bool(GREY.match(name))
    # FFmpeg makes 8 bits of more by dropping some: white of the full range, all ones, becomes one and a half too much.
    wide = bits(name) > 8 if rgb else deep or full and bits(name) > 8
    if rgb:
        image = reformatter.reformat(frame, format=DEEP if wide else SHALLOW).to_ndarray()
    else:
        converted = reformatter.reformat(
            frame,
            format=DEEP_OF_YUV if wide else SHALLOW,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=extent,
            dst_color_range=ColorRange.JPEG,
            interpolation=TO_RGB,
        )
        image = converted.to_ndarray()
        if wide:
            # FFmpeg's white of 16 bits: 255 * 256 from the limited range; from the full range, which it takes all grey
            # for, the largest value of so many bits, followed by zeros.
            image = cv2.add(image, image >> (bits(name) if full else 8))
    if wide == deep:
        return image
    return image * np.uint16(257) if deep else cv2.convertScaleAbs(image, alpha=1 / 257)


def to_yuv(
    image: np.ndarray, pix_fmt: str, matrix: int, extent: ColorRange, reformatter: VideoReformatter
) -> av.VideoFrame:
    """A frame of YUV or grey, by this matrix and range, from RGB uint8 (H, W, 3), or uint16 for more than 8 bits."""
    deep = image.dtype == np.uint16
    image = image - (image >> 8) if deep else image  # FFmpeg's white of 16 bits is 255 * 256
    finer = FINER.sub(r"\g<1>16le", pix_fmt) if extent == ColorRange.JPEG else pix_fmt
    made = reformatter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=DEEP if deep else SHALLOW),
        format=finer,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=ColorRange.JPEG,
        dst_color_range=extent,
        interpolation=FROM_RGB,
    )
    return made if finer == pix_fmt else _rounded(made, pix_fmt, full=True)


def to_gbr(image: np.ndarray, pix_fmt: str) -> av.VideoFrame:
    """A frame of RGB in planes of 9 to 16 bits from RGB uint16 (H, W, 3), the nearest: FFmpeg would cut off bits."""
    values = cv2.addWeighted(image, (2 ** bits(pix_fmt) - 1) / 65535, image, 0, 0)
    return av.VideoFrame.from_ndarray(values, format=pix_fmt)


def with_layout(
    frame: av.VideoFrame, pix_fmt: str, matrix: int, extent: ColorRange, reformatter: VideoReformatter
) -> av.VideoFrame:
    """YUV or grey in another format of YUV or grey, with the same brightness; fewer bits are the nearest."""
    depth = bits(frame.format.name)
    fewer = bits(pix_fmt) < depth <= 16  # FFmpeg would cut off bits, or add noise, and be up to half a level too bright
    made = reformatter.reformat(
        frame,
        format=LAYOUT.sub(rf"\g<1>{depth}le", pix_fmt) if fewer else pix_fmt,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=extent,
        dst_color_range=extent,
        threads=THREADS,
    )
    full = extent == ColorRange.JPEG or pix_fmt.startswith("gray")
    return _rounded(made, pix_fmt, full) if fewer else made


def _rounded(frame: av.VideoFrame, pix_fmt: str, full: bool) -> av.VideoFrame:
    """The same in a format of fewer bits. full: whether of the full range."""
    made, depth, before = av.VideoFrame(frame.width, frame.height, pix_fmt), bits(pix_fmt), bits(frame.format.name)
    unit = (2**depth - 1) / (2**before - 1) if full else 2.0 ** (depth - before)
    kind, number = (np.uint8, cv2.CV_8U) if depth == 8 else (np.uint16, cv2.CV_16U)
    for place, (source, plane) in enumerate(zip(frame.planes, made.planes)):
        values = np.frombuffer(source, np.uint16).reshape(source.height, -1)[:, : source.width]
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]
        shift = 2 ** (depth - 1) - 2 ** (before - 1) * unit if place else 0  # grey has the middle value of chroma
        cv2.addWeighted(values, unit, values, 0, shift, dst=rows, dtype=number)
        np.minimum(rows, 2**depth - 1, out=rows)
    return made


def plain(frame: av.VideoFrame, colour: Colour, reformatter: VideoReformatter) -> av.VideoFrame:
    """A frame in a format that FFmpeg converts rightly, and codecs hold, with the same values. Grey of the limited
    range becomes YUV: FFmpeg converts all grey as if it were of the full range."""
    name = plain_format(frame.format.name, colour)
    if name == frame.format.name:
        return frame
    # Grey has no matrix, but with another one than FFmpeg's default its levels of 10 bits change, by up to three.
    same = {"src_color_range": ColorRange.JPEG, "dst_color_range": ColorRange.JPEG}
    same |= {"src_colorspace": BT601, "dst_colorspace": BT601}
    return reformatter.reformat(frame, format=name, threads=THREADS, **same)


def plain_format(name: str, colour: Colour) -> str:
    """The format that `plain` gives for one."""
    if GREY.match(name):
        return GREY.sub("yuv420p", name) if colour.range == LIMITED else name
    if SWAPPED.fullmatch(name):  # FFmpeg makes other colours of them
        return name[:-2] + "le"
    form = av.VideoFormat(name, 8, 8)
    parts = form.components
    if name.startswith(("yuv", "xyz")) or form.is_rgb or form.has_palette or len(parts) < 3:
        return name
    chroma = {(4, 4): 420, (4, 8): 422, (8, 8): 444, (2, 8): 411}[parts[1].width, parts[1].height]
    return f"yuv{chroma}p" + f"{parts[0].bits}le" * (parts[0].bits > 8)  # planes, in place of interleaved values


def is_rgb(frame: av.VideoFrame) -> bool:
    return frame.format.is_rgb or frame.format.has_palette


def bits(pix_fmt: str) -> int:
    """How many bits the pixels of a format have per colour."""
    return max(part.bits for part in av.VideoFormat(pix_fmt).components)
