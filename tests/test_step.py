"""One step of training, without a data set: what it does to the weights, in each precision, and when it is skipped."""

import copy
import itertools
from functools import partial

import pytest
import torch
from conftest import formula_image
from small_training import CPU, endless, loss, network, same, sample_batch
from training_runs import rows

import models
from datasets import Sample
from losses import ifrnet_loss
from utils import checkpoint, distributed
from utils.step import AMP, OPTIMIZERS, Recipe, State, quickest_amp
from utils.training import fit
from utils.validation import Validation

pytestmark = pytest.mark.usefixtures("one_thread", "small_network")


def test_one_step_is_adamw_on_the_sum_of_the_terms(tmp_path):
    model, plain = network(), network()
    state = fit(model, endless, loss, Recipe(iterations=1, lr_start=1e-3), tmp_path, CPU)
    batch = sample_batch(0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0)
    sum(ifrnet_loss(plain(*batch[0:3:2], 0.5, batch.imgt), batch.imgt).values()).backward()
    optimizer.step()
    assert state.iteration == 1 and not same(plain, network())
    for a, b in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_all_targets_of_a_window_are_trained_on_in_one_step(tmp_path):
    seen = []

    def spy(out, batch, progress):
        seen.append((out.imgt.shape, batch.imgt.shape, batch.t.tolist()))
        return ifrnet_loss(out, batch.imgt)

    fit(network(), lambda start: endless(start, targets=3), spy, Recipe(iterations=1), tmp_path, CPU)
    assert seen[0][0] == seen[0][1] == (6, 3, 32, 32)
    assert seen[0][2] == pytest.approx([0.2, 0.5, 0.8] * 2)


def test_two_batches_accumulated_are_one_of_twice_the_size(tmp_path):
    def halves(start):
        for iteration in itertools.count(start):
            batch = sample_batch(iteration, 4)
            yield Sample(*(x[:2] for x in batch))
            yield Sample(*(x[2:] for x in batch))

    big, small = network(), network()
    fit(big, lambda start: endless(start, size=4), loss, Recipe(iterations=3, log_every=3), tmp_path / "a", CPU)
    fit(small, halves, loss, Recipe(iterations=3, accumulate=2, log_every=3), tmp_path / "b", CPU)
    for a, b in zip(big.parameters(), small.parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    one, two = rows(tmp_path / "a")[0], rows(tmp_path / "b")[0]
    assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-4)


def test_a_run_goes_on_with_its_scale_of_gradients_and_with_a_fresh_one_where_it_had_none(tmp_path):
    for amp, expected in (("fp16", 128), ("none", 2**16)):
        state = State(network(), Recipe(iterations=1, amp=amp), CPU)
        state.scaler.scale(torch.ones(()))  # it begins
        state.scaler.update(128.0)
        state.iteration = 1
        checkpoint.save(tmp_path / amp, state.content())
        recipe, content = Recipe(iterations=1, amp="fp16"), checkpoint.newest(tmp_path / amp)[0]
        resumed = fit(network(5), endless, loss, recipe, tmp_path / amp, CPU, resume=content)
        assert resumed.scaler.get_scale() == expected


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    def spoilt(start):
        for iteration in itertools.count(start):
            batch = sample_batch(iteration)
            yield batch._replace(imgt=batch.imgt * torch.nan) if iteration in (1, 2) else batch

    def without(start):
        return (sample_batch(iteration) for iteration in (0, 3))

    fast = {"schedule": lambda progress: 1e-3}
    some, none = network(), network()
    fit(some, spoilt, loss, Recipe(iterations=4, log_every=4), tmp_path / "a", CPU, **fast)
    fit(none, without, loss, Recipe(iterations=2, log_every=2), tmp_path / "b", CPU, **fast)
    assert same(some, none)
    counted, clean = rows(tmp_path / "a")[0], rows(tmp_path / "b")[0]
    assert (counted["bad_steps"], clean["bad_steps"]) == ("2", "0") and counted["loss"] == clean["loss"]


def test_steps_that_were_all_skipped_have_no_loss(tmp_path):
    """Rather than one of 0, which would be the best of the curve."""

    def spoilt(start):
        for iteration in itertools.count(start):
            batch = sample_batch(iteration)
            yield batch._replace(imgt=batch.imgt * torch.nan) if iteration in (0, 1) else batch

    fit(network(), spoilt, loss, Recipe(iterations=3, log_every=2), tmp_path, CPU)
    nothing, one = rows(tmp_path)
    assert {nothing[name] for name in ("loss", "rec", "grad_norm")} == {"nan"} and nothing["bad_steps"] == "2"
    assert float(one["loss"]) > 0 and one["bad_steps"] == "0"


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_skipped_step_leaves_the_statistics_of_batchnorm_alone(tmp_path, bad):
    """Of a loss that is NaN, and of one that is 0 and has a gradient of NaN: that of a square root."""

    def spoilt(start):
        for iteration in itertools.count(start):
            batch = sample_batch(iteration)
            yield batch._replace(t=batch.t / 2) if iteration == 1 else batch

    def spoiling(out, batch, progress):
        if (batch.t == 0.5).all():
            return loss(out, batch, progress)
        return {"rec": out.imgt.mean() * torch.nan if bad == "loss" else (out.imgt.mean() * 0).sqrt()}

    def without(start):
        return (sample_batch(iteration) for iteration in (0, 2))

    ended = []
    for batches_, steps in ((spoilt, 3), (without, 2)):
        torch.manual_seed(0)
        model = models.build("IFRNet_S", "gelu+bn")
        recipe = Recipe(iterations=steps, ema=0.5)
        state = fit(model, batches_, spoiling, recipe, tmp_path / str(steps), CPU, schedule=lambda progress: 1e-3)
        ended += [model, state.ema]  # the averaged network takes them as they are
    assert len(list(model.buffers())) > 0
    for first, *others in zip(*(model.buffers() for model in ended)):
        assert all(torch.equal(first, other) for other in others)


def test_ranks_with_unlike_devices_agree_on_a_precision(monkeypatch):
    own = quickest_amp(CPU)
    for others, expected in ((["none"], "none"), (["fp16"], "fp16" if own == "bf16" else own), ([own], own)):
        monkeypatch.setattr(distributed, "gather", lambda value, others=others: [value, *others])
        assert quickest_amp(CPU) == expected


def test_averaged_weights_follow_their_formula_and_are_the_ones_judged(tmp_path):
    judged, weights = [], []

    def remember(out, batch, progress):
        weights.append([p.detach().clone() for p in model.parameters()])
        return loss(out, batch, progress)

    def validate(net):
        judged.append(net)
        model.eval()
        return {"psnr": 1.0}

    model = network()
    recipe = Recipe(iterations=3, ema=0.15)
    state = fit(model, endless, remember, recipe, tmp_path, CPU, schedule=lambda progress: 1e-2, validate=validate)
    weights.append([p.detach().clone() for p in model.parameters()])
    average = weights[0]
    for n, after in enumerate(weights[1:]):
        decay = min(0.15, (1 + n) / (10 + n))
        average = [decay * a + (1 - decay) * b for a, b in zip(average, after)]
    for mine, expected in zip(state.ema.parameters(), average):
        torch.testing.assert_close(mine, expected)
    assert judged == [state.ema] and model.training
    best = models.load(tmp_path / "best.pth")
    assert same(best, state.ema)
    assert same(models.load(tmp_path / "latest.pth"), state.ema)  # the weights that one would use


def test_clipping_bounds_the_gradient(tmp_path, monkeypatch):
    norms = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]]).item())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    fit(network(), endless, loss, Recipe(iterations=2, clip_grad=0.01), tmp_path / "a", CPU)
    fit(network(), endless, loss, Recipe(iterations=2), tmp_path / "b", CPU)
    assert norms[:2] == pytest.approx([0.01, 0.01], rel=1e-3) and min(norms[2:]) > 0.02


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_in_another_memory_layout(tmp_path, first, optimizer):
    """A fused optimizer reads its moments in the order in which the weights lie in memory."""
    begun = Recipe(iterations=2, channels_last=first, optimizer=optimizer)
    fit(network(), endless, loss, begun, tmp_path / "begun", CPU)
    content, states = checkpoint.read(tmp_path / "begun" / checkpoint.LATEST), []
    for layout in (False, True):
        recipe = Recipe(iterations=4, channels_last=layout, optimizer=optimizer)
        states.append(fit(network(), endless, loss, recipe, tmp_path / str(layout), CPU, resume=content))
    for a, b in zip(*(state.model.parameters() for state in states)):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_checkpoint_in_memory_resumes_any_number_of_runs_alike(tmp_path, optimizer):
    begun = fit(network(), endless, loss, Recipe(iterations=1, optimizer=optimizer), tmp_path / "begun", CPU)
    content = copy.deepcopy(begun.content())
    models = [network(), network()]
    for number, model in enumerate(models):
        recipe = Recipe(iterations=3, optimizer=optimizer)
        fit(model, endless, loss, recipe, tmp_path / str(number), CPU, resume=content)
    assert same(*models)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_resumed_with_the_other_optimizer_is_told(tmp_path, optimizer):
    other = next(name for name in OPTIMIZERS if name != optimizer)
    fit(network(), endless, loss, Recipe(iterations=1, optimizer=optimizer), tmp_path, CPU)
    content = checkpoint.read(tmp_path / checkpoint.LATEST)
    for more, source in (({}, "the run to resume"), ({"source": "a.pth"}, "a.pth")):
        with pytest.raises(ValueError, match=f"^{source}: trained with {optimizer}; give --optimizer {optimizer}"):
            fit(network(), endless, loss, Recipe(iterations=2, optimizer=other), tmp_path, CPU, resume=content | more)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains_almost_as_single(tmp_path, capsys, amp, optimizer):
    half, common = {"amp": amp, "channels_last": True}, {"iterations": 2, "log_every": 2, "optimizer": optimizer}
    for name, options in (("single", {}), ("half", half)):
        state = fit(network(), endless, loss, Recipe(**common, **options), tmp_path / name, CPU)
        assert state.iteration == 2 and all(p.dtype == torch.float32 for p in state.model.parameters())
    quick = quickest_amp(CPU)
    told = f"note: {amp} takes several times as long on this processor; --amp {quick} does not\n"
    assert capsys.readouterr().out.count(told) == (amp != quick)
    a, b = (float(rows(tmp_path / name)[0]["loss"]) for name in ("single", "half"))
    assert a != b and a == pytest.approx(b, rel=0.02)


def test_bfloat16_reaches_the_score_of_single_precision(tmp_path):
    def panned(seed, size=2):
        """Pictures that move by three pixels from frame to frame."""
        pictures = [formula_image(32, 38, 10 * seed + k) for k in range(size)]
        img0, imgt, img1 = (torch.stack([picture[..., x : x + 32] for picture in pictures]) for x in (0, 3, 6))
        return Sample(img0, imgt, img1, torch.full((size,), 0.5), torch.full((size, 4, 32, 32), torch.nan))

    validate = Validation([Sample(*parts) for parts in zip(*panned(1000, size=8))], CPU)
    single, half = models.load("IFRNet_S"), models.load("IFRNet_S")
    before = validate(single)["psnr"]
    for amp, model in (("none", single), ("bf16", half)):
        fit(model, lambda n: map(panned, itertools.count(n)), loss, Recipe(iterations=8, amp=amp), tmp_path / amp, CPU)
    after = validate(single)["psnr"]
    assert after > before + 0.5 and not same(single, half)
    assert validate(half)["psnr"] == pytest.approx(after, abs=0.1)


def test_what_is_compiled_is_one_graph_that_takes_the_same_steps(tmp_path, monkeypatch):
    """Except for the compiler itself: in its place, the graph that it is given runs as it is."""
    graphs = []

    def run_as_it_is(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=run_as_it_is, fullgraph=True))
    eager, compiled = network(), network()
    fit(eager, endless, loss, Recipe(iterations=2), tmp_path / "eager", CPU)
    fit(compiled, endless, loss, Recipe(iterations=2, compile=True), tmp_path / "compiled", CPU)
    assert len(graphs) == 1 and same(eager, compiled) and not same(eager, network())
    assert same(models.load(tmp_path / "compiled" / "latest.pth"), eager)  # under the names that everyone uses


def test_a_recipe_needs_one_horizon():
    for wrong in ({}, {"iterations": 3, "minutes": 1.0}):
        with pytest.raises(ValueError, match="one of the two"):
            Recipe(**wrong)


def test_amp_names_are_the_interpolators():
    from models.interpolator import PRECISIONS

    assert set(AMP) - {"none"} == set(PRECISIONS) - {"fp32"}
