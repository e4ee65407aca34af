"""Interpolator: from frames of any size to frames at any times, on any device, at any precision."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fast, multiscale
from .ifrnet import DIVISOR, IFRNet
from .recording import LARGEST, Recorder
from .strips import StripIFRNet

SCALES = ((2560, 1.0), (5120, 0.5))  # longer side in pixels up to which flow is estimated at this scale
SMALLEST_SCALE = 0.25  # beyond
NAMED_SCALES = ("auto", "multi")
DARKEST, BRIGHTEST = -0.75, 2.0  # values outside are not frames in [0, 1], not even ones that a filter overshot
FINEST = 16  # largest denominator of a scale: at 333/1000, sides would have to be multiples of 16000
CPU_BUDGET = 2 * 2**30  # bytes that one call may take on a CPU: more is no faster
MOST_PAIRS = 8  # in a batch: that many keep a GPU busy
MOST_TIMES = 8  # in one recording, of small frames: all their frames are in memory at once
STRIP, LEAST_ROWS = 2**19, 32  # pixels in a strip, and its fewest rows
FRAME_BYTES, FEATURE_BYTES = 200, 24  # per pixel, and per pixel and channel of the first level: measured
MODES = ("eager", "fast", "auto")
PADDINGS = {"replicate": "replicate", "zeros": "constant"}  # and what F.pad calls them
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Padding(NamedTuple):
    """How a frame is padded to a size that the network accepts; the result is cropped back.

    mode: of PADDINGS. Sides become multiples of smallest_divisor(scale).
    size: (height, width) to pad to at least, for protocols with one fixed size. centred: pad on all sides, or only
    right and bottom.
    """

    mode: str = "replicate"
    size: tuple[int, int] | None = None
    centred: bool = True

    def amounts(self, height: int, width: int, scale: float) -> tuple[int, int, int, int]:
        """Pixels to add left, right, top, bottom."""
        divisor = smallest_divisor(scale)
        least = self.size or (0, 0)
        more = [-(-max(side, low) // divisor) * divisor - side for side, low in zip((width, height), least[::-1])]
        before = [m // 2 if self.centred else 0 for m in more]
        return before[0], more[0] - before[0], before[1], more[1] - before[1]

    def pad(self, x: Tensor, amounts: tuple[int, int, int, int]) -> Tensor:
        """Frames with these pixels added, as of `amounts`."""
        return F.pad(x, amounts, mode=PADDINGS[self.mode]) if any(amounts) else x  # F.pad would copy


def smallest_divisor(scale: float) -> int:
    """The smallest n such that n * scale is a multiple of the network's divisor: 16 at 1, 20 at 0.8, 32 at 0.5."""
    return (DIVISOR / Fraction(scale).limit_denominator(FINEST)).numerator


def scale_for(height: int, width: int) -> float:
    """The scale that "auto" stands for: 1 up to a longer side of 2560 pixels, 0.5 up to 5120 (4K), 0.25 beyond (8K)."""
    return next((scale for longest, scale in SCALES if max(height, width) <= longest), SMALLEST_SCALE)


def nearest_scale(scale: float) -> float:
    """The nearest scale at which frames need little padding. ValueError if `scale` is not a number or out of range."""
    if not isinstance(scale, Real):
        raise ValueError(f"unknown scale {scale!r}; give a number or one of {', '.join(NAMED_SCALES)}")
    if not 1 / FINEST <= scale <= 4:
        raise ValueError(f"scale {float(scale):g} is out of range; give a number from 1/{FINEST} to 4")
    return float(Fraction(float(scale)).limit_denominator(FINEST))


def scales_for(height: int, width: int, scale: float | str) -> tuple[float, ...]:
    """The scales that the `scale` of an Interpolator stands for, the largest first."""
    if scale == "multi":
        scales = (scale_for(height, width) * smaller for smaller in multiscale.SCALES)
        return tuple(scale for scale in scales if scale >= 1 / FINEST)
    return (scale_for(height, width) if scale == "auto" else nearest_scale(scale),)


def check_pair(img0: Tensor, img1: Tensor) -> None:
    """ValueError unless both are float tensors of one shape, (3, H, W) or (B, 3, H, W), 2x2 or larger, and look like
    frames in [0, 1]."""
    for frame in (img0, img1):
        if not isinstance(frame, Tensor):
            raise ValueError(f"frames of type {type(frame).__name__}; tensors are needed, RGB in [0, 1], (3, H, W)")
        if not frame.is_floating_point():
            raise ValueError(f"frames of type {frame.dtype}; floats in [0, 1] are needed: divide bytes by 255")
    if img0.shape != img1.shape:
        alike = img0.shape[-2:] == img1.shape[-2:]
        sizes = (str(tuple(x.shape)) if alike or x.ndim < 2 else f"{x.shape[-1]}x{x.shape[-2]}" for x in (img0, img1))
        raise ValueError(f"the two frames have different {'shapes' if alike else 'sizes'}: {' and '.join(sizes)}")
    if img0.ndim not in (3, 4) or img0.shape[-3] != 3 or min(img0.shape[-2:]) < 2 or not len(img0):
        raise ValueError(f"frames of shape {tuple(img0.shape)}; RGB of at least 2x2 pixels is needed, (3, H, W)")
    for frame in (img0, img1):
        if frame.device.type == "cpu":  # on a GPU this would synchronise
            least, most = frame[..., ::8, ::8].aminmax()  # a few pixels give away values up to 255 or centred on 0
            if most > BRIGHTEST:
                raise ValueError(f"frames reach {most:g}; values in [0, 1] are needed: divide by 255")
            if not (DARKEST <= least and most <= BRIGHTEST):  # NaN, too
                raise ValueError(f"frames from {least:g} to {most:g}; values in [0, 1] are needed")


def check_range(times: Sequence[float]) -> None:
    """ValueError where there are no times, or where one is not a number in (0, 1)."""
    if not hasattr(times, "__getitem__") or isinstance(times, str) or not getattr(times, "ndim", 1) or not len(times):
        raise ValueError(f"times = {times}; a list of numbers in (0, 1) is needed, such as [0.5]")
    for t in times:
        if not isinstance(t, Real) and getattr(t, "ndim", 1):
            raise ValueError(f"t = {t!r} is not a number; a list of numbers in (0, 1) is needed, such as [0.5]")
        if not 0 < t < 1:
            raise ValueError(f"t = {float(t):g} is out of range; a frame lies between the two at 0 < t < 1")


def check_settings(model: IFRNet, precision: str | None, tile: int | str | None, padding: Padding, mode: str) -> None:
    """ValueError for what an Interpolator cannot be made with."""
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    if not isinstance(padding, Padding):
        raise ValueError(f'unknown padding {padding!r}; give a Padding, such as Padding("zeros")')
    if padding.mode not in PADDINGS:
        raise ValueError(f"unknown padding {padding.mode!r}; choose one of {', '.join(PADDINGS)}")
    size = (1, 1) if padding.size is None else padding.size
    if not isinstance(size, Sequence) or [isinstance(side, Integral) and side > 0 for side in size] != [True, True]:
        raise ValueError(f"padding to the size {size}; give (height, width), in pixels, or None")
    if tile not in (None, "auto") and not (isinstance(tile, Integral) and tile >= LEAST_ROWS):
        raise ValueError(f'tile {tile!r}; give {LEAST_ROWS} rows or more, "auto" or None')
    if not (isinstance(model, nn.Module) and hasattr(model, "any_time")):
        what = "models.load gives one, and DataParallel holds one as its .module"
        raise ValueError(f"model of type {type(model).__name__}; an IFRNet is needed: {what}")


def default_device() -> torch.device:
    """The current GPU where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_precision(mode: str, device: str | torch.device) -> str:
    """float32; in fast mode what fast.best_precision finds for the device."""
    return fast.best_precision(torch.device(device)) if mode == "fast" else "fp32"


class Interpolator:
    """Frames between two frames.

    model: an IFRNet, which is itself moved to `device` and put into evaluation mode. Fast mode copies its weights, and
        whether they read t is checked, on construction: after load_state_dict make a new Interpolator. A copy, also one
        that is sent to another process, is constructed anew from the weights that the model then has.
    device: default the GPU, where there is one.
    precision: of the convolutions, "fp32", "bf16" or "fp16" (default: see default_precision); flow and coordinates are
        always float32.
    scale: size at which flow is estimated, relative to the frames: 0.5 and below for 4K and large motion; the nearest
        fraction with a denominator up to 16 is used. "auto": by the frames' size, see scale_for. "multi": at that
        scale and smaller ones, for a third more arithmetic; each part of the frame is taken mostly from the scales
        that find its motion (see multiscale.py).
    tile: None computes whole frames; a number computes strips of that many rows, which takes less memory and gives the
        same frames (see strips.py); "auto" does so where a whole frame would not fit into memory.
    padding: see Padding.
    mode: "eager" runs the network as written, "fast" the same weights in the way that suits the hardware (see fast.py),
        in strips on a CPU whatever `tile` says; "auto" is fast where that was measured (see fast.proven), else eager.
    pixels: how many the network will process in all, if known: where fast mode takes longer to start than it saves (see
        fast.pays), the mode becomes "eager".

    ValueError for an unknown precision, padding, mode or scale, for a padding that gives no size, for a tile of fewer
    than LEAST_ROWS rows, for "fast" without PReLU, for a model that is not an IFRNet, and for weights of a type that
    eager mode cannot compute with.
    """

    def __init__(
        self,
        model: IFRNet,
        device: str | torch.device | None = None,
        precision: str | None = None,
        scale: float | str = 1.0,
        tile: int | str | None = None,
        padding: Padding = Padding(),
        mode: str = "eager",
        pixels: float | None = None,
    ):
        check_settings(model, precision, tile, padding, mode)
        self.device = torch.device(device or default_device())
        self.model = model.to(self.device).eval()
        if mode != "eager" and pixels is not None and not fast.pays(self.model, pixels, self.device):
            mode = "eager"
        unasked = mode == "auto"
        if unasked:
            mode, precision = fast.proven(self.model, self.device, precision)
        self.mode, self.precision = mode, precision or default_precision(mode, self.device)
        weights = next(model.parameters()).dtype
        if mode == "eager" and weights not in (torch.float32, PRECISIONS[self.precision]):
            raise ValueError(f"weights of {weights}: eager mode in {self.precision} needs float32; give model.float()")
        self.scale = scale if scale in NAMED_SCALES else nearest_scale(scale)
        self.padding, self.tile = padding, tile
        self._budget: int | None = None
        # With "auto" nobody asked for fast mode: a missing compiler is then no reason to warn.
        self._start(tell=not unasked)

    def _start(self, tell: bool) -> None:
        self.any_time = self.model.any_time
        self.fast = self.recorder = None
        if self.mode == "fast":
            self.fast = fast.FastIFRNet(self.model, self.device, PRECISIONS[self.precision], tell)
            self.recorder = Recorder() if self.device.type == "cuda" else None

    def __getstate__(self) -> dict[str, Any]:
        """What copy and pickle take: fast mode's library and recordings are this process's, and are made anew."""
        return self.__dict__ | {"_budget": None, "fast": None, "recorder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start(tell=False)

    def check_times(self, times: Sequence[float]) -> None:
        """ValueError where a time is outside (0, 1), or not 0.5 for weights that ignore t."""
        check_range(times)
        for t in map(float, times):
            if t != 0.5 and not self.any_time:
                raise ValueError(
                    f"t = {t:g}: these weights were trained at t = 0.5 alone and ignore t; use weights trained at any "
                    "t, such as the shipped IFRNet_S or a published IFRNet_*_GoPro.pth"
                )

    def __call__(
        self, img0: Tensor, img1: Tensor, times: Sequence[float] = (0.5,), scale: float | str | None = None
    ) -> Tensor:
        """The frames at `times` between img0 and img1.

        img0, img1: (3, H, W) or (B, 3, H, W) in [0, 1], any H and W from 2 up. times: in (0, 1). scale: for these
        frames, in place of the interpolator's. Returns (T, 3, H, W) or (B, T, 3, H, W), float32 on the interpolator's
        device. They take no gradients back to the frames or the model: call the model itself for that. ValueError for
        frames that `check_pair` refuses, and for times that `check_times` refuses.
        """
        # Also of a single frame a copy: one made in inference mode could not be changed in place or trained on.
        return torch.stack(list(self.each(img0, img1, times, scale)), img0.ndim - 3)

    @torch.inference_mode()
    def each(
        self, img0: Tensor, img1: Tensor, times: Sequence[float] = (0.5,), scale: float | str | None = None
    ) -> Iterator[Tensor]:
        """The same frames one after another, (3, H, W) or (B, 3, H, W): memory does not grow with their number, except
        that a GPU makes a few small ones at once. They are inference tensors: clone() one to change it in place. img0
        and img1 may be read until the last: do not change them before."""
        check_pair(img0, img1)
        self.check_times(times)
        times = [float(t) for t in times]
        batch = img0.ndim == 4
        height, width = img0.shape[-2:]
        scales = self.scales(height, width, scale)
        img0, img1 = ((x if batch else x[None]).to(self.device, torch.float32) for x in (img0, img1))
        if self.recorder is None or any(self._rows(img0.shape, scale) for scale in scales):
            frames = self._frames(scales, img0, img1, *times)
        else:
            at_once = max(1, min(MOST_TIMES, LARGEST // (len(img0) * height * width)))
            several = (times[k : k + at_once] for k in range(0, len(times), at_once))
            of_scales = partial(self._frames, scales)
            recorded = (
                self.recorder((scales, img0.shape, len(some)), of_scales, img0, img1, *some) for some in several
            )
            frames = chain.from_iterable(recorded)
        for frame in frames:
            yield frame if batch else frame[0]

    def _frames(self, scales: Sequence[float], img0: Tensor, img1: Tensor, *times: float | Tensor) -> Iterator[Tensor]:
        """The frames at `times`, (B, 3, H, W), one after another; a time may be a tensor of one number."""
        estimates = [self._estimates(img0, img1, scale, len(scales) == 1) for scale in scales]
        for t in times:
            frames, doubts = zip(*(estimate(t) for estimate in estimates))
            yield multiscale.blend(frames, doubts) if len(frames) > 1 else frames[0]

    def _estimates(
        self, img0: Tensor, img1: Tensor, scale: float, alone: bool
    ) -> Callable[[float | Tensor], tuple[Tensor, Tensor | None]]:
        """A function of t that returns the frame, (B, 3, H, W), as estimated at one scale, and its doubt: None if
        `alone`."""
        height, width = img0.shape[-2:]
        amounts = self.padding.amounts(height, width, scale)
        img0, img1 = (self.padding.pad(x, amounts) for x in (img0, img1))
        model = self._fitting(img0.shape, scale)
        decode = partial(model.decode, flow=True) if self.fast is not None and not alone else model.decode
        left, _, top, _ = amounts
        small = None if alone else (multiscale.shrink(img0), multiscale.shrink(img1))
        columns = round(img0.shape[-1] * scale)
        with self._autocast(columns):
            pair = model.encode(img0, img1, scale)

        def cropped(x: Tensor) -> Tensor:
            return x[..., top : top + height, left : left + width]

        def estimate(t: float | Tensor) -> tuple[Tensor, Tensor | None]:
            with self._autocast(columns):
                out = decode(pair, t)
            return cropped(out.imgt.float()), None if small is None else cropped(multiscale.doubt(out.flows[0], *small))

        return estimate

    def memory(self, shape: Sequence[int], scale: float = 1.0) -> int:
        """About how many bytes one call takes for whole frames of shape (B, 3, H, W). Measured."""
        batch, _, height, width = shape
        features = self.model.encoder.pyramid1[0][0].out_channels
        return int(batch * height * width * (FRAME_BYTES + FEATURE_BYTES * features * scale**2))

    def budget(self) -> int:
        """How many bytes one call may take on this device; on a GPU 80 % of what was free at the first query. It is
        queried once: that takes a while beside a small frame, and later our own CUDA graphs would count as used."""
        if self.device.type != "cuda":
            return CPU_BUDGET
        if self._budget is None:
            free = torch.cuda.mem_get_info(self.device)[0]
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            self._budget = int(0.8 * (free + unused))
        return self._budget

    def pairs_at_once(self, height: int, width: int) -> int:
        """How many pairs of this size to pass as one batch: on the CPU more than one gains nothing."""
        if self.device.type != "cuda":
            return 1
        needed = sum(self.memory((1, 3, height, width), scale) for scale in self.scales(height, width))
        return max(1, min(MOST_PAIRS, self.budget() // (2 * needed)))

    def scales(self, height: int, width: int, scale: float | str | None = None) -> tuple[float, ...]:
        """The scales to estimate at, the largest first. scale: in place of the interpolator's."""
        return scales_for(height, width, self.scale if scale is None else scale)

    def _autocast(self, columns: int) -> torch.autocast:
        """columns: of the frames as the encoder reads them."""
        # float32 runs without autocast, and fast mode sets types itself.
        wanted = self.precision != "fp32" and self.fast is None
        if self.device.type == "cpu" and columns == DIVISOR:  # oneDNN reads beyond rows of two pixels: fast.NARROW
            wanted = wanted and next(self.model.parameters()).dtype != torch.float32
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=wanted)

    def _rows(self, shape: Sequence[int], scale: float) -> int | None:
        """How many rows of frames of shape (B, 3, H, W) to compute at a time; None: all."""
        if self.tile != "auto":
            return self.tile
        if self.fast is not None and self.device.type == "cpu" or self.memory(shape, scale) <= self.budget():
            return None
        return max(STRIP // shape[-1], LEAST_ROWS)

    def _fitting(self, shape: Sequence[int], scale: float) -> IFRNet | fast.FastIFRNet:
        rows = self._rows(shape, scale)
        if self.fast is not None:
            return self.fast.in_strips(rows)
        return StripIFRNet(self.model, rows) if rows else self.model
