"""A network on a GPU as CUDA graphs: starting a hundred kernels one by one takes longer than a small frame itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .fast import FastIFRNet
from .ifrnet import LEVELS, Interpolation, Pair, check_frames, times_of

RECORDINGS = 2  # sizes of frames that are kept
SEEN = 1000  # and that are remembered as having come once


class Recording:
    """A function of tensors as a CUDA graph: its hundred launches become one. Inputs are copied in, results out, so
    that what one call gave is not overwritten by the next."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], *inputs: Tensor):
        self.inputs = [x.clone() for x in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self.inputs)  # kernels are compiled and chosen before anything is recorded
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, which read and write frames, may go on using the GPU while this one records.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        for mine, given in zip(self.inputs, inputs):
            mine.copy_(given)
        self.graph.replay()
        return [x.clone() for x in self.outputs]


class RecordedIFRNet:
    """A FastIFRNet on a GPU, called as that is. What comes a second time with frames of one shape is recorded; the
    last RECORDINGS shapes are kept, since each holds memory of its own."""

    def __init__(self, network: FastIFRNet):
        self.network, self.name, self.any_time = network, network.name, network.any_time
        self.recordings: dict[tuple, Recording] = {}  # the least recently used first
        self.seen: set[tuple] = set()

    def in_strips(self, rows: int | None) -> "RecordedIFRNet | FastIFRNet":
        return self if rows == self.network.rows else self.network.in_strips(rows)

    @torch.inference_mode()
    def encode(self, img0: Tensor, img1: Tensor, scale: float = 1.0) -> Pair:
        def function(img0: Tensor, img1: Tensor) -> list[Tensor]:
            pair = self.network.encode(img0, img1, scale)
            return [pair.mean, *pair.pyramid0, *pair.pyramid1]

        check_frames(img0, img1, scale)
        mean, *pyramids = self._call(("encode", img0.shape, scale), function, img0, img1)
        return Pair(img0, img1, mean, tuple(pyramids[:LEVELS]), tuple(pyramids[LEVELS:]), scale)

    @torch.inference_mode()
    def decode(self, pair: Pair, t: Tensor | float) -> Interpolation:
        def function(img0: Tensor, img1: Tensor, mean: Tensor, t: Tensor, *pyramids: Tensor) -> list[Tensor]:
            inputs = Pair(img0, img1, mean, pyramids[:LEVELS], pyramids[LEVELS:], pair.scale)
            return [self.network.decode(inputs, t).imgt]

        t, _ = times_of(pair, t)
        inputs = (pair.img0, pair.img1, pair.mean, t, *pair.pyramid0, *pair.pyramid1)
        (frame,) = self._call(("decode", pair.img0.shape, t.shape, pair.scale), function, *inputs)
        return Interpolation(frame, (), (), None)

    def _call(self, key: tuple, function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Sequence[Tensor]:
        recording = self.recordings.pop(key, None)
        known = recording is not None or key in self.seen
        with torch.cuda.device_of(inputs[0]), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            if not known:
                if len(self.seen) >= SEEN:
                    self.seen.clear()
                self.seen.add(key)
                return function(*inputs)
            if recording is None:
                while len(self.recordings) >= 2 * RECORDINGS:
                    del self.recordings[next(iter(self.recordings))]
                recording = Recording(function, *inputs)
            self.recordings[key] = recording
            return recording(*inputs)
