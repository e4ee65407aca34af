"""Baselines with the interface of Interpolator: what a network must beat, and methods from elsewhere.

    frames = baselines.interpolator("dis")(img0, img1, times=[0.5])

`interpolator` makes a network's Interpolator, a baseline or a method from its name, for every script that makes frames.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import external, load
from .ifrnet import VARIANTS, IFRNet
from .interpolator import Interpolator, check_pair, check_range, default_device


class Baseline:
    """Frames between two frames without a network. device: of the result, as for Interpolator."""

    any_time, mode = True, None

    def __init__(self, device: str | torch.device | None = None):
        self.device = torch.device(device or default_device())

    def check_times(self, times: Sequence[float]) -> None:
        """ValueError where a time is outside (0, 1)."""
        check_range(times)

    def __call__(
        self, img0: Tensor, img1: Tensor, times: Sequence[float] = (0.5,), scale: float | None = None
    ) -> Tensor:
        """The frames at `times` between img0 and img1; shapes, ranges and errors are those of Interpolator. scale is
        ignored."""
        return torch.stack(list(self.each(img0, img1, times)), img0.ndim - 3)

    def each(
        self, img0: Tensor, img1: Tensor, times: Sequence[float] = (0.5,), scale: float | None = None
    ) -> Iterator[Tensor]:
        """The same frames one after another, as Interpolator.each gives them."""
        check_pair(img0, img1)
        self.check_times(times)
        batch = img0.ndim == 4
        img0, img1 = ((x if batch else x[None]).detach().to(self.device, torch.float32) for x in (img0, img1))
        for frame in self.frames(img0, img1, [float(t) for t in times]):
            frame = frame.clamp(0, 1)
            yield frame if batch else frame[0]

    def frames(self, img0: Tensor, img1: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
        """(B, 3, H, W) twice -> (B, 3, H, W) for each time, which may go beyond [0, 1]."""
        raise NotImplementedError


class Repeat(Baseline):
    """The nearer of the two frames, at t = 0.5 the first."""

    def frames(self, img0: Tensor, img1: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
        return (img0 if t <= 0.5 else img1 for t in times)


class Average(Baseline):
    """Both frames, weighted by their nearness in time."""

    def frames(self, img0: Tensor, img1: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
        return ((1 - t) * img0 + t * img1 for t in times)


class Dis(Baseline):
    """Both frames moved along DIS optical flow, then averaged. A strong floor; runs on the CPU.

    With f01 and f10 the flow between the frames in either direction, f = (f01 - f10) / 2 combines both into one motion
    in a straight line at constant speed: flow t->0 = -t f, flow t->1 = (1 - t) f. Each frame is sampled there (cubic,
    borders replicated) and weighted by its nearness in time. At t = 0.5 the flows are (f10 - f01) / 4 and
    (f01 - f10) / 4, and the frames are averaged.
    """

    def __init__(self, device: str | torch.device | None = None):
        from .flow.dis import DIS  # here, because the networks alone do not need OpenCV

        super().__init__(device)
        self.flow = DIS()

    def motion(self, img0: Tensor, img1: Tensor) -> Tensor:
        """f above, (B, 2, H, W) in pixels."""
        return (self.flow.estimate(img0, img1) - self.flow.estimate(img1, img0)) / 2

    def frames(self, img0: Tensor, img1: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
        motion = self.motion(img0, img1)
        for t in times:
            yield (1 - t) * _remap(img0, -t * motion) + t * _remap(img1, (1 - t) * motion)


class External(Baseline):
    """A method from elsewhere, see external.py. path: of its file.

    Errors are those of external.Method.
    """

    def __init__(self, path: str | Path, device: str | torch.device | None = None):
        super().__init__(device)
        self.path = Path(path)
        self.method = external.Method(self.path)
        self.any_time = self.method.any_time

    def check_times(self, times: Sequence[float]) -> None:
        """ValueError where a time is outside (0, 1), or not 0.5 for a function that takes no t."""
        super().check_times(times)
        for t in map(float, times):
            if t != 0.5 and not self.any_time:
                raise ValueError(f"{self.path}: t = {t:g}, but {external.FUNCTION}(img0, img1) knows t = 0.5 only")

    def frames(self, img0: Tensor, img1: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
        for t in times:
            with torch.no_grad():
                frame = self.method(img0, img1, t)
            yield frame.to(self.device, torch.float32)


BASELINES = {"repeat": Repeat, "average": Average, "dis": Dis}
NAMES = (*VARIANTS, *BASELINES)


def interpolator(
    model_name: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    **options,
) -> Interpolator | Baseline:
    """The Interpolator of a network, or a baseline, by name.

    model_name: one of NAMES, or the .py file of a method; None: the network in the checkpoint, or the shipped IFRNet_S.
    checkpoint: a path; None: the shipped weights of that name. options: Interpolator's; ignored for all but networks.
    FileNotFoundError or ValueError if the weights do not exist or are those of another network, and as of External.
    """
    if not is_model(model_name):
        raise ValueError(f"unknown model {model_name!r}; choose one of {', '.join(NAMES)}, or the .py file of a method")
    if not is_network(model_name):
        if checkpoint is not None:
            raise ValueError(f"{model_name} has no weights and cannot use {checkpoint}; name a network")
        return BASELINES[model_name](device) if model_name in BASELINES else External(model_name, device)
    return Interpolator(network(model_name, checkpoint), device, **options)


def is_network(model_name: str | Path | None) -> bool:
    """Whether the model of a name, see `interpolator`, is a network of this project."""
    return model_name in (None, *VARIANTS)


def is_model(model_name: str | Path | None) -> bool:
    """Whether `interpolator` knows the name."""
    return model_name in (None, *NAMES) or str(model_name).endswith(external.SUFFIX)


def network(model_name: str | None, checkpoint: str | Path | None) -> IFRNet:
    """A network by name, see `interpolator`."""
    model = load((model_name or "IFRNet_S") if checkpoint is None else checkpoint)
    if model_name and model.name != model_name:
        raise ValueError(f"{checkpoint}: holds an {model.name}, not an {model_name}; change --model_name")
    return model


def _remap(x: Tensor, flow: Tensor) -> Tensor:
    """Sample x at p + flow(p), cubic, borders replicated, by OpenCV. x: (B, 3, H, W); flow: (B, 2, H, W)."""
    import cv2
    import numpy as np

    rows, columns = np.mgrid[: x.shape[-2], : x.shape[-1]].astype(np.float32)
    moved = [
        cv2.remap(frame, columns + dx, rows + dy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        for frame, (dx, dy) in zip(x.movedim(1, -1).cpu().numpy(), flow.cpu().numpy())
    ]
    return torch.from_numpy(np.stack(moved)).movedim(-1, 1).to(x.device)
