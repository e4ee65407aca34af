"""Training with native.c: PyTorch's gradients, in any layout, on any number of threads; and training without it."""

import copy
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, triton_kernels
from torch import nn

import models
from losses import ifrnet_loss, terms
from models import native
from models.layers import PReLU

CHANNELS_LAST = torch.channels_last


def test_a_compiler_is_a_path_or_a_command(monkeypatch, tmp_path):
    spaced = tmp_path / "my compilers" / "cc"
    spaced.parent.mkdir()
    spaced.write_text("#!/bin/sh")
    spaced.chmod(0o755)
    monkeypatch.setattr(native.shutil, "which", {name: name for name in ("cc", "ccache", str(spaced))}.get)
    for named, command in ((str(spaced), [str(spaced)]), ("ccache gcc -m64", ["ccache", "gcc", "-m64"])):
        monkeypatch.setenv("CC", named)
        assert native.find_compiler() == command
    monkeypatch.setenv("CC", " ")
    assert native.find_compiler() == ["cc"]
    with monkeypatch.context() as during, pytest.raises(OSError, match="^there is no C compiler$"):
        during.setattr(native.shutil, "which", lambda name: None)
        native.find_compiler()
    monkeypatch.setenv("CC", "gcc -DX='")
    with pytest.raises(OSError, match="CC=gcc -DX='"):
        native.find_compiler()
    monkeypatch.setenv("CC", "icc -O2")
    with pytest.raises(OSError, match="^CC=icc -O2: there is no such compiler$"):
        native.find_compiler()


def test_a_compiler_may_complain_in_any_coding(monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nprintf '\\344 is no letter of UTF-8' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(OSError, match="cc cannot build native.c and winograd.c: . is no letter of UTF-8"):
        native.build(torch.float32)


@pytest.mark.skipif(os.name == "nt", reason="there are no process groups")
def test_a_signal_to_all_of_a_run_does_not_end_its_compiler(tmp_path):
    """A run that ends after its step, for a signal of the launcher or terminal, must not have taken it another way."""
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nkill -TERM -$RUN\nsleep 0.1\nexec {" ".join(native.find_compiler())} "$@"\n')
    compiler.chmod(0o755)
    code = """
import os, signal, torch
from models import native
os.environ["RUN"] = str(os.getpid())
signal.signal(signal.SIGTERM, lambda *_: print("signalled"))
print(native.build(torch.float32).is_file())
"""
    environment = os.environ | {"CC": str(compiler), "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, cwd=ROOT, env=environment, start_new_session=True, capture_output=True, text=True)
    assert said.stdout.split() == ["signalled", "signalled", "True"], said.stderr


@pytest.fixture(autouse=True)
def built():
    if native.library(torch.zeros(1)) is None:
        pytest.skip("there is no compiler here")


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    native._library.cache_clear()
    yield
    native._library.cache_clear()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def noise(*shape, seed=0, dtype=torch.float32, layout=CHANNELS_LAST):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(memory_format=layout)


def slopes(channels):
    module = PReLU(channels)
    nn.init.uniform_(module.weight, -0.5, 0.5)
    return module


def part_of(x):
    """The same values as some channels of a wider tensor."""
    return F.pad(x, (0, 0, 0, 0, 3, 2)).contiguous(memory_format=CHANNELS_LAST)[:, 3:-2]


def window_of(x):
    """The same values as a window of a larger tensor."""
    return F.pad(x, (2, 3, 1, 1)).contiguous(memory_format=CHANNELS_LAST)[:, :, 1:-1, 2:-3]


LAYOUTS = {
    "dense": lambda x: x,
    "planar": lambda x: x.contiguous(),
    "part of the channels": part_of,
    "window": window_of,
    "one number": lambda x: x.flatten()[:1].expand(x.shape),
}


def gradients(module, x, above):
    x = x.detach().requires_grad_(True)
    module.zero_grad()
    y = module(x)
    y.backward(above)
    return y.detach(), x.grad, module.weight.grad.clone()


class Calls(native.Library):
    """A library that notes which functions are called."""

    def __init__(self, dtype):
        super().__init__(dtype)
        self.names = []

    def call(self, name, *arguments):
        self.names.append(name)
        super().call(name, *arguments)


@pytest.fixture
def calls(monkeypatch):
    library = Calls(torch.float32)
    monkeypatch.setattr(native, "_library", lambda dtype: library)
    return library.names


@pytest.mark.parametrize("above", LAYOUTS)
@pytest.mark.parametrize("x", ["dense", "part of the channels", "window"])
def test_prelu_has_the_gradients_of_pytorch_in_any_layout(x, above, calls):
    module = slopes(19)
    values, grads = noise(3, 19, 37, 31), LAYOUTS[above](noise(3, 19, 37, 31, seed=1))
    made = gradients(module, LAYOUTS[x](values), grads)
    assert calls == ["prelu", "prelu_backward"]
    exact = copy.deepcopy(module).double()
    exact.forward = lambda x: F.prelu(x, exact.weight)
    for ours, theirs in zip(made, gradients(exact, values.double(), grads.double())):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)
    assert made[0].is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("size", [(5, 1), (1, 5), (1, 1)])
def test_prelu_reads_a_gradient_of_one_row_or_column_where_it_lies(size):
    """A stride along a side of one pixel means nothing: that of a transposed tensor leads beyond its end."""
    module, x = slopes(8), noise(2, 8, *size)
    above = noise(2, 8, *size[::-1], seed=1).transpose(2, 3)
    _, of_x, _ = gradients(module, x, above)
    assert torch.equal(of_x, torch.where(x > 0, above, above * module.weight.detach()[:, None, None]))


def test_prelu_in_half_precision_rounds_once():
    """As under autocast: bfloat16 values, float32 slopes, whose gradient is a sum of float32 products."""
    module = slopes(24)
    x, above = (noise(2, 24, 40, 56, seed=s, dtype=torch.bfloat16) for s in (0, 1))
    y, of_x, of_slope = gradients(module, x, above)
    exact = copy.deepcopy(module).double()
    exact.forward = lambda x: F.prelu(x, exact.weight)
    expected = gradients(exact, x.double(), above.double())
    assert y.dtype == of_x.dtype == torch.bfloat16 and of_slope.dtype == torch.float32
    assert torch.equal(y, expected[0].float().bfloat16()) and torch.equal(of_x, expected[1].float().bfloat16())
    torch.testing.assert_close(of_slope, expected[2].float(), atol=1e-4, rtol=1e-5)


def test_prelu_keeps_what_is_not_a_number():
    module, x = slopes(4), noise(1, 4, 5, 6)
    x[0, 2, 3, 3] = torch.nan
    y, of_x, of_slope = gradients(module, x, torch.ones_like(x))
    assert y.isnan().nonzero().tolist() == [[0, 2, 3, 3]]
    assert of_x.isfinite().all() and of_slope.isnan().tolist() == [False, False, True, False]
    above = torch.ones_like(x)
    above[0, 1] = torch.nan
    assert gradients(module, noise(1, 4, 5, 6), above)[1].isnan().sum() == 30


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_prelu_is_left_to_pytorch_where_it_is_not_trained_or_watched(calls):
    module, x = slopes(8), noise(1, 8, 4, 6)
    with torch.no_grad():
        expected = module(x)
    torch.jit.trace(module, x)
    torch.export.export(module, (x,))
    module(x.contiguous())  # not channels-last
    PReLU()(x)  # one slope for all
    module(x.flatten(2))
    assert calls == [] and torch.equal(module(x).detach(), expected) and calls == ["prelu"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("term", [terms.census, terms.geometry])
def test_the_census_is_that_of_plain_pytorch(term, layout, calls, monkeypatch):
    """The plain one, which float64 uses, is compared with the definition in test_losses.py."""
    pair = [noise(3, 5, 38, 45, seed=s, layout=layout) for s in (0, 1)]
    made = [part_of(x).requires_grad_(True) if layout is CHANNELS_LAST else x.requires_grad_(True) for x in pair]
    exact = [x.detach().double().requires_grad_(True) for x in pair]
    one, other = term(*made), term(*exact)
    assert calls == ["census"]
    torch.testing.assert_close(one.double(), other, atol=0, rtol=1e-5)
    one.backward()
    other.backward()
    for a, b in zip(made, exact):
        assert (a.grad is None) == (b.grad is None)
        if b.grad is not None:
            torch.testing.assert_close(a.grad.double(), b.grad, atol=1e-9, rtol=1e-3)


def test_what_pytorch_takes_unless_told_changes_no_gradient(unless_told):
    x, y, above, module = noise(2, 9, 14, 18), noise(2, 9, 14, 18, seed=1), noise(2, 9, 14, 18, seed=2), slopes(9)

    def everything():
        leaf = x.clone().requires_grad_(True)
        terms.geometry(leaf, y).backward()
        return leaf.grad, *gradients(module, x, above)

    expected = everything()
    unless_told()
    for ours, theirs in zip(everything(), expected):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("needed", [(True, False), (True, True)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("patch", [3, 7])
def test_the_census_of_a_gpu_is_that_of_plain_pytorch(patch, layout, needed):
    kernels, device = triton_kernels()
    pair = [noise(2, 3, 14, 19, seed=s, layout=layout) for s in (0, 1)]
    total, gradients = kernels.census(*(x.to(device) for x in pair), patch, needed)
    expected, exact = terms._census_sum(*(x.double() for x in pair), patch, needed)
    torch.testing.assert_close(total.cpu().double(), expected, atol=0, rtol=1e-5)
    for a, b in zip(gradients, exact):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a.cpu().double(), b, atol=2e-6, rtol=1e-4)


def test_the_gradient_of_the_census_is_what_the_sum_changes_by():
    x, y, step = noise(2, 3, 14, 18), noise(2, 3, 14, 18, seed=1), noise(2, 3, 14, 18, seed=2) / 100
    leaf = x.clone().requires_grad_(True)
    terms.geometry(leaf, y).backward()
    change = terms.geometry(x + step, y) - terms.geometry(x - step, y)
    assert change.item() == pytest.approx(2 * (leaf.grad * step).sum().item(), rel=1e-2)


@pytest.mark.parametrize("size", [(6, 5), (2, 9), (9, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_census_of_frames_smaller_than_its_patch_is_nothing(dtype, size):
    x, y = (noise(2, 1, *size, seed=seed, dtype=dtype) for seed in (0, 1))
    x.requires_grad_(True)
    term = terms.census(x, y)
    term.backward()
    assert term == 0 and x.grad.eq(0).all()


def test_a_census_of_what_is_not_a_number_is_none():
    x = noise(2, 3, 16, 16)
    x[1, 0, 8, 8] = torch.nan
    assert terms.census(x, noise(2, 3, 16, 16)).isnan() and terms.geometry(noise(2, 3, 16, 16), x).isnan()


def trained(size=64):
    """The loss and gradients of a step in half precision."""
    torch.manual_seed(0)
    model = models.build("IFRNet_S").to(memory_format=CHANNELS_LAST).train()
    img0, imgt, img1 = (noise(2, 3, size, size, seed=s).sigmoid() for s in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(img0, img1, 0.5, imgt)
    loss = sum(ifrnet_loss(out, imgt, noise(2, 4, size, size, seed=4)).values())
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def test_gradients_are_the_same_on_any_number_of_threads(threads):
    x, above, module = noise(3, 24, 40, 56), noise(3, 24, 40, 56, seed=1), slopes(24)
    y = noise(3, 24, 40, 56, seed=2)

    def everything(count):
        threads(count)
        leaves = [z.clone().requires_grad_(True) for z in (x, y)]
        term = terms.geometry(*leaves)
        term.backward()
        return [*gradients(module, x, above), term.detach(), *(z.grad for z in leaves)]

    for one, two in zip(everything(1), everything(2)):
        assert torch.equal(one, two)


def test_without_a_compiler_it_says_so_once_and_trains_all_the_same(no_compiler):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        plain = trained()
    (said,) = [str(w.message) for w in caught if "plain PyTorch" in str(w.message)]
    assert said.startswith("training continues in plain PyTorch, which is slower")
    native._library.cache_clear()  # tests after this one build with the actual compiler
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CC")
        quick = trained()
    torch.testing.assert_close(quick[0], plain[0], rtol=1e-2, atol=0)
    a, b = (torch.cat([g.flatten() for g in grads[1:]]) for grads in (quick, plain))
    assert F.cosine_similarity(a, b, dim=0) > 0.99
