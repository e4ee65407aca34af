"""Convolutions by Winograd's filtering: PyTorch's in float64, to the rounding of the type, on any processor."""

import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import kernels, native, winograd
from models.winograd import Winograd, as_convolution

FLOAT, HALF = torch.float32, torch.bfloat16
ROUNDING = {FLOAT: 4e-6, HALF: 6e-3}  # relative to the values' size; bfloat16 has eight bits
OLDER = {"as it is": (), "without AVX-512": ("-mno-avx512f",)}


def library(dtype, monkeypatch, folder, flags=()):
    if flags:
        if platform.machine() != "x86_64":
            pytest.skip("flags of another processor")
        monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, *flags))
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    try:
        return native.Library(dtype)
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For what is compiled with other flags: once for all tests."""
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(params=[(FLOAT, "as it is"), (FLOAT, "without AVX-512"), (HALF, "as it is")], ids=str)
def built(request, monkeypatch, folder):
    dtype, name = request.param
    made = library(dtype, monkeypatch, folder, OLDER[name])
    if not made.has("winograd"):
        pytest.skip("this processor lacks the instructions")
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # even if the tests run with one
    yield made, dtype
    torch.set_num_threads(before)


def noise(dtype, *shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype, memory_format=torch.channels_last)


def layer(kind, *arguments, **options):
    torch.manual_seed(0)
    return kind(*arguments, **options).requires_grad_(False)


def assert_near(got, expected, dtype):
    assert got.dtype == dtype and got.shape == expected.shape
    error = (got.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < ROUNDING[dtype]


# Channels as in the networks and others, sizes that are not multiples of a tile, more tiles than are computed at once.
SHAPES = [(1, 16, 5, 1, 1), (2, 18, 40, 7, 9), (3, 72, 72, 13, 50), (2, 104, 96, 6, 10), (1, 162, 162, 3, 70)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_convolution_and_its_activation_are_pytorchs(built, shape):
    made, dtype = built
    batch, channels, outputs, height, width = shape
    conv, slope = layer(nn.Conv2d, channels, outputs, 3, padding=1), torch.linspace(-0.5, 0.5, outputs)
    x, more = (noise(dtype, batch, count, height, width, seed=count) for count in (channels, outputs))
    whole = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    tiled = Winograd(conv.weight, conv.bias, slope, dtype)
    assert_near(tiled(made, x), F.prelu(whole, slope.double()), dtype)
    assert_near(tiled(made, x, add=more), F.prelu(whole + more, slope.double()), dtype)
    y, tail = tiled(made, x, tail=5)
    assert torch.equal(y, tiled(made, x)) and torch.equal(tail, y[:, -5:])
    wide = noise(dtype, batch, outputs + 7, height, width)
    result = tiled(made, x, into=(given := wide.clone()))
    assert result is given and torch.equal(given[:, :7], wide[:, :7]) and torch.equal(given[:, 7:], y)


@pytest.mark.parametrize("channels, outputs", [(192, 76), (96, 36), (72, 28), (18, 3)])
def test_a_transposed_convolution_is_pytorchs(built, channels, outputs):
    made, dtype = built
    up, x = layer(nn.ConvTranspose2d, channels, outputs, 4, 2, 1), noise(dtype, 2, channels, 7, 13)
    expected = F.conv_transpose2d(x.double(), up.weight.double(), up.bias.double(), 2, 1)
    conv = as_convolution(up)
    assert_near(Winograd(conv.weight, conv.bias, None, dtype, phases=4)(made, x), expected, dtype)


def test_a_transposed_convolution_is_a_convolution_and_a_shuffle():
    up, x = layer(nn.ConvTranspose2d, 5, 8, 4, 2, 1), noise(FLOAT, 2, 5, 7, 9)
    torch.testing.assert_close(kernels.shuffle(as_convolution(up)(x)), up(x), atol=1e-5, rtol=1e-5)


def test_what_lies_outside_is_zero(built):
    made, dtype = built
    conv = layer(nn.Conv2d, 16, 16, 3, padding=1)
    conv.weight[:], conv.bias[:] = 1, 0
    x = noise(dtype, 1, 16, 6, 6).fill_(1)
    reach = Winograd(conv.weight, conv.bias, None, dtype)(made, x)[0, 0] / 16
    inner = torch.tensor([2.0, 3, 3, 3, 3, 2])
    torch.testing.assert_close(reach.float(), inner[:, None] * inner)


@pytest.mark.parametrize(
    "conv, serves",
    [
        (nn.Conv2d(16, 8, 3, padding=1), True),
        (nn.ConvTranspose2d(16, 8, 4, 2, 1), True),
        (nn.Conv2d(16, 8, 3, 2, 1), False),
        (nn.Conv2d(16, 8, 7, padding=3), False),
        (nn.Conv2d(16, 8, 3), False),
        (nn.Conv2d(17, 8, 3, padding=1), False),
        (nn.Conv2d(3, 8, 3, padding=1), False),
        (nn.ConvTranspose2d(16, 8, 2, 2), False),
    ],
)
def test_only_what_it_can_do_is_asked_of_it(conv, serves):
    assert winograd.serves(conv, conv.in_channels) == serves


def test_where_it_pays_is_what_the_processor_has(monkeypatch, folder):
    made = {dtype: library(dtype, monkeypatch, folder) for dtype in (FLOAT, HALF)}
    for amx in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        assert winograd.pays(made[FLOAT], FLOAT) == made[FLOAT].has("winograd")
        assert winograd.pays(made[HALF], HALF) == (made[HALF].has("winograd") and not amx)
    plain = library(FLOAT, monkeypatch, folder, ("-mno-avx2", "-mno-avx512f"))
    assert not winograd.pays(plain, FLOAT)
