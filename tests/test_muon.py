"""Muon against PyTorch's, the SVD and AdamW."""

import pytest
import torch
from torch import nn

from utils.muon import QUINTIC, REPEATS, Muon, orthogonal, together


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 20, 3), nn.PReLU(20), nn.ConvTranspose2d(20, 6, 4), nn.Conv2d(6, 2, 1))


def gradients(model, seed):
    rng = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=rng).contiguous(memory_format=torch.preserve_format)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5), (8, 8), (1, 7)])
def test_singular_values_follow_the_quintic_and_their_vectors_stay(shape):
    a, b, c = QUINTIC
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    s = values / values.norm()
    for _ in range(REPEATS):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonal(matrix), left @ s.diag() @ right, atol=1e-9, rtol=0)
    assert 0.68 < s.min() and s.max() < 1.21


def test_matrices_of_all_shapes_together_turn_as_each_alone():
    """As on GPUs."""
    rng = torch.Generator().manual_seed(2)
    shapes = [(5, 30), (30, 5), (8, 8), (1, 7), (12, 90)]
    matrices = [torch.randn(shape, dtype=torch.float64, generator=rng) for shape in shapes]
    for one, alone in zip(together(matrices), map(orthogonal, matrices)):
        torch.testing.assert_close(one, alone, atol=1e-12, rtol=0)


def test_no_gradient_is_no_step():
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_weights_do_not_decay_and_all_follow_the_learning_rate_of_the_moment():
    model = network()
    optimizer = Muon(model.parameters(), lr=0.1)
    for change, moved in ((0.0, False), (1.0, True)):
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, change)
        before = [weight.detach().clone() for weight in model.parameters()]
        optimizer.step()
        assert all(torch.equal(a, b) != moved for a, b in zip(before, model.parameters()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # as a schedule sets it
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with PyTorch 2.9")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_step_as_pytorchs_muon_moves_matrices_and_the_rest_as_adamw(layout):
    mine, plain = network().to(memory_format=layout), network()
    optimizer = Muon(mine.parameters(), lr=0.01, half=True)
    weights = list(plain.parameters())
    matrices = [weight.detach().flatten(1).clone() for weight in weights if weight.ndim == 4]
    theirs = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([weight for weight in weights if weight.ndim == 1], lr=0.01, weight_decay=0.0)
    for seed in range(4):
        gradients(mine, seed)
        gradients(plain, seed)
        for matrix, weight in zip(matrices, (weight for weight in weights if weight.ndim == 4)):
            matrix.grad = weight.grad.flatten(1)
        for one in (optimizer, theirs, adamw):
            one.step()
    expected = iter(matrices)
    for weight, other, first in zip(mine.parameters(), weights, network().parameters()):
        other = next(expected).view(weight.shape) if weight.ndim == 4 else other
        moved = (other - first).abs().mean()
        assert moved > 1e-3 and (weight - other).abs().mean() < 0.05 * moved  # the error of bfloat16


def test_a_skipped_step_changes_nothing_whatever_the_gradient():
    states = []
    for skipped in (False, True):
        model = network()
        optimizer = Muon(model.parameters(), lr=0.01)
        for seed in range(3):
            gradients(model, seed)
            if skipped and seed == 1:
                before = [p.detach().clone() for p in model.parameters()]
                for weight in model.parameters():
                    weight.grad.fill_(torch.nan)
                optimizer.found_inf = torch.ones(())
                optimizer.step()
                assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
                optimizer.found_inf = torch.zeros(())
                gradients(model, seed)
            optimizer.step()
        states.append(list(model.parameters()) + [s["momentum"] for s in optimizer.state.values() if "momentum" in s])
    assert all(torch.equal(a, b) for a, b in zip(*states))


def test_a_state_saved_by_an_older_pytorch_goes_on():
    """One that lacked an option that AdamW has here."""
    models, optimizers = [network(), network()], []
    for model in models:
        gradients(model, 0)
        optimizers.append(Muon(model.parameters(), lr=0.01))
        optimizers[-1].step()
    saved = optimizers[0].state_dict()
    del saved["param_groups"][1]["maximize"]
    optimizers[0] = Muon(models[0].parameters(), lr=1.0)  # in another process, which has no state of its own
    optimizers[0].load_state_dict(saved)
    for model, optimizer in zip(models, optimizers):
        gradients(model, 1)
        optimizer.step()
    for a, b in zip(*(model.parameters() for model in models)):
        assert torch.equal(a, b)


def test_a_scaler_skips_what_is_not_finite_without_waiting_for_the_device(monkeypatch):
    model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = Muon(model.parameters(), lr=0.01)
    waits, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda x: waits.append(x) or item(x))
    for seed, spoilt in enumerate((False, True, False)):
        gradients(model, seed)
        scaler.scale(torch.zeros(()))  # as a loss would
        model[0].weight.grad[0, 0, 0, 0] = torch.inf if spoilt else 1.0
        before = [p.detach().clone() for p in model.parameters()]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        kept = [torch.equal(a, b) for a, b in zip(before, model.parameters())]
        assert all(kept) if spoilt else not any(kept)
    assert not waits and scaler.get_scale() == 2.0
