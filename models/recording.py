"""A network on a GPU as CUDA graphs: starting a hundred kernels one by one takes longer than a small frame itself."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .fast import FastIFRNet
from .ifrnet import LEVELS, Interpolation, Pair, check_frames, times_of

RECORDINGS = 8  # sizes of frames that are kept, each at one scale
LARGEST = 2**22  # pixels of a batch: beyond, kernels take longer than it takes to start them
PATIENCE = 16  # calls before a size takes another's place: recording takes as long as tens of them
SEEN = 1000  # sizes that are remembered as having come


class Recording:
    """A function of tensors as a CUDA graph: its hundred launches become one. Inputs are copied in, results out, so
    that what one call gave is not overwritten by the next.

    stream: to record on. beside: another recording on this stream, to share memory with; the two must not be replayed
    at the same time.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        inputs: Sequence[Tensor],
        stream: torch.cuda.Stream,
        beside: "Recording | None" = None,
    ):
        self.inputs = [x.clone() for x in inputs]
        now = torch.cuda.current_stream()
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            function(*self.inputs)  # kernels are compiled and chosen before anything is recorded
        now.wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        pool = beside and beside.graph.pool()
        with torch.cuda.stream(now):  # where recording fails, PyTorch may stay on the other stream
            # Other threads, which read and write frames, may go on using the GPU while this one records.
            with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        for mine, given in zip(self.inputs, inputs):
            mine.copy_(given)
        self.graph.replay()
        return [x.clone() for x in self.outputs]


class RecordedIFRNet:
    """A FastIFRNet on a GPU, called as that is, by one thread. What comes a second time with frames of one size is
    recorded, where frames are small enough for it to pay; RECORDINGS sizes are kept, all in one pool of memory."""

    def __init__(self, network: FastIFRNet):
        self.network = network
        self.recordings: dict[tuple, Recording] = {}  # the least recently used first
        self.seen: dict[tuple, int] = {}  # how often what is not recorded has come
        self.stream: torch.cuda.Stream | None = None
        self.records = True

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
    def decode(self, pair: Pair, t: Tensor | float, flow: bool = False) -> Interpolation:
        def function(img0: Tensor, img1: Tensor, mean: Tensor, t: Tensor, *pyramids: Tensor) -> list[Tensor]:
            inputs = Pair(img0, img1, mean, pyramids[:LEVELS], pyramids[LEVELS:], pair.scale)
            out = self.network.decode(inputs, t, flow)
            return [out.imgt, *out.flows]

        t, _ = times_of(pair, t)
        inputs = (pair.img0, pair.img1, pair.mean, t, *pair.pyramid0, *pair.pyramid1)
        frame, *flows = self._call(("decode", pair.img0.shape, t.shape, pair.scale, flow), function, *inputs)
        return Interpolation(frame, tuple(flows), (), None)

    def _call(self, key: tuple, function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Sequence[Tensor]:
        with torch.cuda.device_of(inputs[0]):
            recording = self.recordings.pop(key, None)
            if recording is None:
                if len(self.seen) >= SEEN:
                    self.seen.clear()
                self.seen[key] = count = self.seen.get(key, 0) + 1
                # Of a size that comes once, trying all of cuDNN's algorithms would take longer than the frame.
                with _all_algorithms_tried(count > 1):
                    recording = self._record(function, inputs) if self._pays(count, inputs[0]) else None
                    if recording is None:
                        return function(*inputs)
                del self.seen[key]
            self.recordings[key] = recording
            return recording(*inputs)

    def _pays(self, count: int, frames: Tensor) -> bool:
        """Whether what has come so many times is to be recorded."""
        full = len(self.recordings) >= 2 * RECORDINGS  # one to encode, one to decode
        small = frames.numel() <= LARGEST * frames.shape[1]
        return self.records and small and count > (PATIENCE if full else 1)

    def _record(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Recording | None:
        """None where it fails: then nothing is recorded from now on."""
        while len(self.recordings) >= 2 * RECORDINGS:
            del self.recordings[next(iter(self.recordings))]
        self.stream = self.stream or torch.cuda.Stream()
        try:
            return Recording(function, inputs, self.stream, next(iter(self.recordings.values()), None))
        except RuntimeError as error:
            warnings.warn(f"fast mode without CUDA graphs: {error}", stacklevel=2)
            self.records = False
            return None


@contextmanager
def _all_algorithms_tried(wanted: bool) -> Iterator[None]:
    """Whether cuDNN looks for the quickest way to compute a convolution."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    # PyTorch keeps what was taken unsearched and looks no further; "deterministic" is a part of what it is kept under.
    cudnn.benchmark, cudnn.deterministic = wanted, not wanted
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
