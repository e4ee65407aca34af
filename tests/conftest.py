"""What all tests share: the values that the published implementation gives, and real frames where they are at hand."""

import os
import signal
import struct
import sys
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bare pytest from any folder
import models  # noqa: E402
from datasets import clips  # noqa: E402
from utils import cli  # noqa: E402

# Started in the background, tests ignore Ctrl-C, and with them all that they start and send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED = Path(os.environ.get("VFI_SHARED", ROOT.parent / "shared"))


def reference(name):
    """Arrays that the published implementation gave, by name; the test is skipped where they are not at hand."""
    path = SHARED / "reference" / name
    if not path.is_file():
        pytest.skip("the reference values are not here")
    return dict(np.load(path))


@pytest.fixture(scope="session")
def golden():
    return reference("golden.npz")


@pytest.fixture(scope="session")
def real_data():
    """The folder of real frames: sample_triplets, vimeo_septuplets, clips, bsds500."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real frames are not here")
    return SHARED / "data"


def triton_kernels():
    """The module of the Triton kernels, and their device: a GPU where there is one, otherwise they are interpreted."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are defined
    from models import triton_kernels

    return triton_kernels, torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def not_waiting():
    """Here it is an error that the processor waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def formula_image(height, width, seed):
    """A smooth picture made by formula, (3, H, W) uint8 values in [0, 1]: the reference values' own recipe."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.zeros((3, height, width))
    for channel in image:
        for _ in range(6):
            f, p = rng.uniform(0.01, 0.25, 2), rng.uniform(0, 6.28)
            channel += rng.uniform(0.2, 1) * np.sin(f[0] * x + f[1] * y + p)
    image = (image - image.min()) / (image.max() - image.min())
    return torch.from_numpy(np.round(image * 255).astype(np.float32) / 255)


def formula_weights(model):
    """Fill a model with weights made by formula, of the size of trained ones: the reference values' own recipe."""
    rng = np.random.default_rng(0)
    parameters = dict(model.named_parameters())
    for name in sorted(parameters):
        shape = tuple(parameters[name].shape)
        x = rng.standard_normal(shape)
        if len(shape) == 4:
            transposed = name.endswith(".convblock.2.weight")
            fan = shape[0] * shape[2] * shape[3] / 4 if transposed else np.prod(shape[1:])
            x *= np.sqrt(1.6 / fan)
        elif name.endswith("bias"):
            x *= 0.02
        else:
            x = 0.25 + 0.05 * x
        parameters[name].data = torch.from_numpy(x.astype(np.float32))
    return model.eval()


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of IFRNet_S with weights made by formula."""
    path = tmp_path_factory.mktemp("weights") / "formula.pth"
    torch.save(formula_weights(models.build("IFRNet_S")).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def raft_weights(tmp_path_factory):
    """A checkpoint of torchvision's small RAFT with random weights."""
    from torchvision.models import optical_flow

    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.manual_seed(0)
    torch.save(optical_flow.raft_small().state_dict(), path)
    return path


def png_by_hand(picture):
    """An RGB PNG of 8 or 16 bits, written by its specification."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = picture.shape[:2]
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8 * picture.itemsize, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sliding(frames=12, height=48, width=64, seed=0, step=2):
    """A smooth random picture that slides to the left."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8, (width + frames * step) // 8 + 2, 3), dtype=np.uint8)
    wide = small.repeat(8, 0).repeat(8, 1)
    return np.stack([wide[:height, i * step : i * step + width] for i in range(frames)])


@contextmanager
def files_up_to(size):
    """While this lasts, no file grows larger (in bytes), which the system reports as it does a full disk."""
    import resource  # not on Windows

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def one_thread():
    """Sums in the same order here and in the processes that tests start; small pictures are not worth sharing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Decoded clips are kept in tmp_path / "cache"."""
    monkeypatch.setattr(clips, "CACHE", tmp_path / "cache")


# IFRNet_XS, a network so small that the loop around it takes most of the time.
SMALL = {"IFRNet_XS": models.VARIANTS["IFRNet_S"]._replace(widths=(6, 8, 12, 16), side=6)}


@pytest.fixture
def small_network(monkeypatch):
    for name, variant in SMALL.items():
        monkeypatch.setitem(models.VARIANTS, name, variant)


@pytest.fixture(params=[torch.float64, torch.float16, torch.device("meta")], ids=str)
def unless_told(request):
    """Make it what PyTorch takes, unless told, as the type or the device of a tensor."""
    typed = isinstance(request.param, torch.dtype)
    yield partial(torch.set_default_dtype if typed else torch.set_default_device, request.param)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


class Typed(NamedTuple):
    """What a command did: its exit status, its standard output, its standard error."""

    status: int
    out: str
    err: str


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run a script's main in this process as if it were typed: typed(main, parser, *options) -> Typed."""

    def run(main, parser, *options):
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, options)])
        capsys.readouterr()
        try:
            cli.run(main, parser)
            status = 0
        except SystemExit as stop:
            status = stop.code
        return Typed(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def vimeo(tmp_path_factory):
    """A set to train on, see training_runs.write_training_set."""
    from training_runs import write_training_set

    return write_training_set(tmp_path_factory.mktemp("vimeo"))


@pytest.fixture(scope="session")
def whole(vimeo, tmp_path_factory):
    """A run on it that was not interrupted."""
    from training_runs import write_whole_run

    return write_whole_run(vimeo, tmp_path_factory.mktemp("whole"))
