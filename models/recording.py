"""Calls recorded as CUDA graphs: launching two hundred kernels one by one takes longer than a small frame itself."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

RECORDINGS = 16  # kept at most: enough for several frame sizes, each with a few numbers of times and scales
LARGEST = 2**22  # pixels of a batch: beyond, kernels take longer than their launches
PATIENCE = 16  # calls under a key before it replaces another recording: recording takes as long as tens of calls
SEEN = 1000  # keys without a recording whose calls are counted

Function = Callable[..., Iterable[Tensor]]


class Recording:
    """A function of tensors and numbers as a CUDA graph: its hundreds of launches become one. Inputs are copied in and
    results out, so that a call does not overwrite the results of the one before.

    stream: to record on. beside: another recording on this stream, to share memory with; the two must not be replayed
    at the same time.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor | float],
        stream: torch.cuda.Stream,
        beside: "Recording | None" = None,
    ):
        self.inputs = [
            x.clone() if isinstance(x, Tensor) else inputs[0].new_full((1,), x, dtype=torch.float32) for x in inputs
        ]
        now = torch.cuda.current_stream()
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            list(function(*self.inputs))  # kernels are compiled and chosen before anything is recorded
        now.wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        pool = beside and beside.graph.pool()
        with torch.cuda.stream(now):  # if recording fails, PyTorch may stay on the other stream
            # Other threads, which read and write frames, may go on using the GPU while this one records.
            with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs = list(function(*self.inputs))

    def __call__(self, *inputs: Tensor | float) -> list[Tensor]:
        for mine, given in zip(self.inputs, inputs):
            mine.copy_(given) if isinstance(given, Tensor) else mine.fill_(given)
        self.graph.replay()
        return [x.clone() for x in self.outputs]


class Recorder:
    """Calls functions, from one thread, and records what is called a second time under one key, where frames are small
    enough for it to pay. At most RECORDINGS are kept, all in one memory pool."""

    def __init__(self):
        self.recordings: dict[tuple, Recording] = {}  # the least recently used first
        self.seen: dict[tuple, int] = {}  # calls under each key without a recording
        self.stream: torch.cuda.Stream | None = None
        self.records = True

    def __call__(self, key: tuple, function: Function, *inputs: Tensor | float) -> Iterable[Tensor]:
        """function(*inputs). key: stands for everything that the launches depend on, sizes included, except the values
        of the inputs. inputs: tensors on the GPU, the first of them frames, (B, 3, H, W), or floats."""
        with torch.cuda.device_of(inputs[0]):
            recording = self.recordings.pop(key, None)
            if recording is None:
                if len(self.seen) >= SEEN:
                    self.seen.clear()
                self.seen[key] = count = self.seen.get(key, 0) + 1
                # For a size that occurs once, trying all of cuDNN's algorithms would take longer than the frame.
                if not self._pays(count, inputs[0]):
                    return _trying_algorithms(count > 1, function(*inputs))
                with _cudnn_search(True):
                    recording = self._record(function, inputs)
                if recording is None:
                    return _trying_algorithms(True, function(*inputs))
                del self.seen[key]
            self.recordings[key] = recording
            return recording(*inputs)

    def _pays(self, count: int, frames: Tensor) -> bool:
        """Whether to record at the `count`th call under a key."""
        full = len(self.recordings) >= RECORDINGS
        small = frames.numel() <= LARGEST * frames.shape[1]
        return self.records and small and count > (PATIENCE if full else 1)

    def _record(self, function: Function, inputs: Sequence[Tensor | float]) -> Recording | None:
        """The recording; None if it fails, after which nothing is recorded any more."""
        while len(self.recordings) >= RECORDINGS:
            del self.recordings[next(iter(self.recordings))]
        self.stream = self.stream or torch.cuda.Stream()
        try:
            return Recording(function, inputs, self.stream, next(iter(self.recordings.values()), None))
        except RuntimeError as error:
            warnings.warn(f"fast mode without CUDA graphs: {error}", stacklevel=2)
            self.records = False
            return None


def _trying_algorithms(wanted: bool, results: Iterable[Tensor]) -> Iterator[Tensor]:
    """The results, each computed with or without cuDNN's search."""
    results = iter(results)
    while True:
        with _cudnn_search(wanted):
            result = next(results, None)
        if result is None:
            return
        yield result


@contextmanager
def _cudnn_search(wanted: bool) -> Iterator[None]:
    """Whether cuDNN searches for the fastest algorithm of each convolution."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    # PyTorch caches an algorithm chosen without a search and then never searches; "deterministic" is in the cache key.
    cudnn.benchmark, cudnn.deterministic = wanted, not wanted
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
