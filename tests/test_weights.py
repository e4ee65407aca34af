"""Files of weights: published, own, of half precision, damaged, foreign, and such as would run code."""

import pickle

import pytest
import torch
from conftest import formula_image, formula_weights

import models

PAIR = formula_image(64, 96, 0), formula_image(64, 96, 1)


@pytest.fixture(scope="module")
def model():
    return formula_weights(models.build("IFRNet_S"))


def saved(path, state):
    torch.save(state, path)
    return path


def test_published_and_own_files_load_alike(model, tmp_path):
    state = model.state_dict()
    files = [
        saved(tmp_path / "bare.pth", state),
        saved(tmp_path / "module.pth", {f"module.{name}": value for name, value in state.items()}),
        saved(tmp_path / "compiled.pth", {f"_orig_mod.{name}": value for name, value in state.items()}),
        saved(tmp_path / "inside.pth", {f"module._orig_mod.{name}": value for name, value in state.items()}),
        saved(tmp_path / "outside.pth", {f"_orig_mod.module.{name}": value for name, value in state.items()}),
        saved(tmp_path / "training.pth", {"model": state, "epoch": 3}),
        saved(tmp_path / "others.pth", {"model": None, "state_dict": state, "epoch": 3}),
        saved(tmp_path / "averaged.pth", {"model": {k: v * 0 for k, v in state.items()}, "ema": state}),
        saved(tmp_path / "basicsr.pth", {"params": {k: v * 0 for k, v in state.items()}, "params_ema": state}),
        saved(
            tmp_path / "tutorial.pth", {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}
        ),
        saved(tmp_path / "net.pth", {"params": {"lr": 1e-4}, "net": state}),
    ]
    expected = models.Interpolator(model, "cpu")(*PAIR)
    for path in files:
        assert torch.equal(models.Interpolator(models.load(path), "cpu")(*PAIR), expected), path.name


def test_a_half_precision_file_becomes_single_precision(model, tmp_path):
    path = saved(tmp_path / "half.pth", {name: value.half() for name, value in model.state_dict().items()})
    loaded = models.load(path)
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].half().float())


def test_weights_are_single_precision_whatever_pytorch_takes_unless_told(model, tmp_path, unless_told):
    path, expected = saved(tmp_path / "whole.pth", model.state_dict()), models.Interpolator(model, "cpu")(*PAIR)
    unless_told()
    loaded = models.load(path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(models.Interpolator(loaded, "cpu")(*PAIR), expected)


def test_neither_loading_nor_fast_mode_draws_from_pytorchs_random_numbers(model, tmp_path):
    path, before = saved(tmp_path / "whole.pth", model.state_dict()), torch.get_rng_state()
    models.Interpolator(models.load(path), "cpu", mode="fast")(*PAIR)
    assert torch.equal(torch.get_rng_state(), before)


class Runs:
    """Unpickling it runs code, which creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"weight": torch.zeros(1), "extra": Runs(tmp_path / "ran")}, tmp_path / "foreign.pth")
    (tmp_path / "foreign.pkl").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol=2))
    for name in ("foreign.pth", "foreign.pkl"):
        with pytest.raises(ValueError, match=f"{name}.*not loaded"):
            models.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_broken_and_foreign_files_are_named(model, tmp_path):
    state = model.state_dict()
    whole = saved(tmp_path / "whole.pth", state).read_bytes()
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("<html>404</html>")
    (tmp_path / "table.pth").write_text("u,v\n1,2\n")
    torch.save(state, tmp_path / "whole.old", _use_new_zipfile_serialization=False)
    old = (tmp_path / "whole.old").read_bytes()
    for size in (10, 60, 200, 1000, len(old) // 2):
        (tmp_path / f"old{size}.pth").write_bytes(old[:size])
    saved(tmp_path / "list.pth", [torch.zeros(1)])
    saved(tmp_path / "nothing.pth", {})
    saved(tmp_path / "tensor.pth", {"model": torch.zeros(2)})
    saved(tmp_path / "sparse.pth", {"weight": torch.eye(2).to_sparse()})
    saved(tmp_path / "tiny.pth", {"weight": torch.zeros(2).to(torch.float8_e5m2)})
    saved(tmp_path / "wide.pth", state | {"decoder1.convblock.2.bias": torch.zeros(9)})
    saved(tmp_path / "less.pth", {k: v for k, v in state.items() if "decoder1" not in k})
    saved(tmp_path / "more.pth", state | {"another.weight": torch.zeros(1)})
    for path in sorted(tmp_path.iterdir()):
        if path.stem != "whole":
            with pytest.raises(ValueError) as error:
                models.load(path)
            assert path.name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        models.load(tmp_path / "missing.pth")
    with pytest.raises(ValueError, match=", ".join(models.VARIANTS)):
        models.build("IFRNet_0")
