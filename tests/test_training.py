"""The loop, without a data set: what a step does, what a stopped run keeps, and what is skipped."""

import itertools
import math
import os
import signal
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, files_up_to, formula_image
from training_runs import rows

import models
import train_gopro
import train_vimeo90k
from datasets import Sample, gopro
from losses import ifrnet_loss
from utils import batches, checkpoint, distributed, epochs, meter, step, training
from utils.step import AMP, OPTIMIZERS, Recipe, State, quickest_amp
from utils.training import cosine, fit
from utils.validation import Validation

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def loss(out, batch, progress):
    return ifrnet_loss(out, batch.imgt, batch.flow)


def sample_batch(iteration, size=2, targets=None):
    """Smooth random pictures that depend on the iteration alone."""
    rng = torch.Generator().manual_seed(iteration)
    coarse = torch.rand(size, 9, 4, 4, generator=rng)
    img0, imgt, img1 = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1).chunk(3, 1)
    flow, t = torch.full((size, 4, 32, 32), torch.nan), torch.full((size,), 0.5)
    if targets:
        imgt, t = imgt[:, None].repeat(1, targets, 1, 1, 1), torch.linspace(0.2, 0.8, targets).repeat(size, 1)
    return Sample(img0, imgt, img1, t, flow)


def endless(start, **kwargs):
    return (sample_batch(iteration, **kwargs) for iteration in itertools.count(start))


@pytest.fixture(autouse=True)
def variant(monkeypatch):
    """A network so small that the loop around it takes most of the time."""
    small = models.VARIANTS["IFRNet_S"]._replace(widths=(6, 8, 12, 16), side=6)
    monkeypatch.setitem(models.VARIANTS, "IFRNet_XS", small)


def network(seed=0):
    torch.manual_seed(seed)
    return models.build("IFRNet_XS")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize(
    "script, data, epochs, batch_size, eval_interval",
    [(train_vimeo90k, "vimeo_triplet", 300, 6, 1), (train_gopro, "GOPRO", 600, 2, 8)],
)
def test_defaults_are_the_papers_recipe(script, data, epochs, batch_size, eval_interval):
    args = script.parser().parse_args([])
    assert args.data == str(ROOT / "data" / data)
    assert (args.epochs, args.batch_size, args.eval_interval) == (epochs, batch_size, eval_interval)
    assert (args.lr_start, args.lr_end, args.crop, args.accumulate) == (1e-4, 1e-5, 224, 1)
    assert (args.optimizer, args.amp, args.ema, args.clip_grad, args.activation) == ("adamw", "none", 0, 0, "prelu")
    optimizer = State(models.build("IFRNet_S"), Recipe(iterations=1), CPU).optimizer
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["weight_decay"] == 0
    assert train_vimeo90k.PAPER_ITERATIONS == 641_400 and gopro.VALIDATION_SIZE == 512
    assert (train_gopro.PAPER_EPOCHS, train_gopro.PAPER_STEP, gopro.LENGTH, gopro.STRIDE) == (600, 8, 9, 8)


def test_who_departs_from_the_papers_iterations_times_learning_rate_is_told(monkeypatch, capsys):
    """With more GPUs, or larger batches, 300 epochs are fewer iterations: such runs ended far below the paper."""
    args = train_vimeo90k.parser().parse_args(["--data", "gone"])
    for count, paper in ((51_313, 641_400), (40_000, None)):  # all of the training list, and a part
        monkeypatch.setattr(train_vimeo90k, "read_list", lambda *_, count=count: [str(k) for k in range(count)])
        assert train_vimeo90k.sets(args, CPU, None)[2] == paper
    for batch_size, rate, told in ((24, 1, False), (220, 1, True), (220, 9, False), (24, 2, True)):
        args.lr_start, args.lr_end = rate * 1e-4, rate * 1e-5
        order = batches.Order(51_313, batch_size)
        epochs.announce(args, order, epochs.horizon(300, order, None), 0, 641_400, 1, CPU)
        assert ("--iterations 641400 keeps the paper's" in capsys.readouterr().out) == told


def test_the_last_hundredth_of_a_list_is_validated_on_where_no_other_is_given():
    """Neighbours in a list show one scene: taken from here and there, nearly all would be on both sides."""
    names = [str(k) for k in range(250)]
    assert epochs.split(names) == (names[:-2], names[-2:]) and epochs.split(["a", "b"]) == (["a"], ["b"])
    assert epochs.split(["a", "b", "c"], ["b", "x"]) == (["a", "c"], ["b", "x"])
    for all_of_them, way in (((["a"],), "give --val_list"), ((["a"], ["a"]), "give another --val_list")):
        with pytest.raises(ValueError, match=f"1 samples in the training list, all of them for validation; {way}"):
            epochs.split(*all_of_them)


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


def test_the_learning_rate_falls_along_a_cosine_every_iteration(tmp_path):
    fit(network(), endless, loss, Recipe(iterations=4, log_every=1), tmp_path, CPU)
    rates = [float(row["lr"]) for row in rows(tmp_path)]
    expected = [1e-5 + 9e-5 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert cosine(1e-4, 1e-5)(0) == pytest.approx(1e-4) and cosine(1e-4, 1e-5)(1) == pytest.approx(1e-5)


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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_run_resumed_is_the_uninterrupted_one_bit_for_bit(tmp_path, optimizer):
    recipe = Recipe(iterations=6, log_every=1, eval_every=2, ema=0.9, clip_grad=1.0, optimizer=optimizer)

    def validate(model):
        return {"psnr": float(model.decoder1.convblock[2].bias.detach().abs().sum())}

    def dropping(out, batch, progress):
        return {name: term * torch.rand(()) for name, term in loss(out, batch, progress).items()}

    def interrupted(start):
        for iteration in itertools.count(start):
            if iteration == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield sample_batch(iteration)

    whole = fit(network(), endless, dropping, recipe, tmp_path / "whole", CPU, validate=validate)
    with pytest.raises(SystemExit) as stopped:
        fit(network(), interrupted, dropping, recipe, tmp_path / "cut", CPU, validate=validate)
    assert stopped.value.code == 128 + signal.SIGTERM
    content, warnings = checkpoint.newest(tmp_path / "cut")
    assert content["iteration"] == 4 and not warnings
    resumed = fit(network(5), endless, dropping, recipe, tmp_path / "cut", CPU, validate=validate, resume=content)
    assert same(whole.model, resumed.model) and same(whole.ema, resumed.ema) and whole.best == resumed.best
    assert not same(whole.model, whole.ema)
    for a, b in zip(whole.optimizer.state.values(), resumed.optimizer.state.values()):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    curves = [
        [(row["iteration"], row["loss"], row["psnr"]) for row in rows(tmp_path / name)] for name in ("whole", "cut")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 9


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


def test_the_best_of_a_run_elsewhere_is_no_bar_where_there_are_no_weights_of_it(tmp_path):
    scores = iter([30.0, 20.0, 10.0])
    content = None
    for folder, end in (("there", 1), ("here", 2)):
        fit(network(), endless, loss, Recipe(iterations=end), tmp_path / folder, CPU, resume=content,
            validate=lambda _: {"psnr": next(scores)})  # fmt: skip
        content = checkpoint.read(tmp_path / folder / "latest.pth")
    assert [(row["iteration"], row["psnr"]) for row in rows(tmp_path / "here") if row["psnr"]] == [
        ("1", "20"),
        ("2", "10"),
    ]
    assert content["best"] == 20 and same(
        models.load(tmp_path / "here" / "best.pth"), models.load(tmp_path / "there" / "latest.pth")
    )


def test_weights_to_start_from_are_the_ones_to_beat(tmp_path):
    """They are judged before their first step, and the best ones where training makes them worse."""
    scores, start = iter([3.0, 2.0]), network()
    given = {"model": start.state_dict(), "iteration": 0}
    recipe = Recipe(iterations=1, log_every=1)
    fit(network(5), endless, loss, recipe, tmp_path, CPU, validate=lambda net: {"psnr": next(scores)}, resume=given)
    assert [(row["iteration"], row["psnr"]) for row in rows(tmp_path)] == [("0", "3"), ("1", ""), ("1", "2")]
    assert same(models.load(tmp_path / "best.pth"), start)
    assert not same(models.load(tmp_path / "latest.pth"), start)


def test_signals_are_the_processes_own_again_after_a_run(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(network(), endless, loss, Recipe(iterations=1), tmp_path, CPU)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_error_of_the_data_loses_no_step(tmp_path):
    def broken(start):
        yield from itertools.islice(endless(start), 3)
        raise ValueError("im2.png: cut short")

    with pytest.raises(ValueError, match="cut short"):
        fit(network(), broken, loss, Recipe(iterations=9), tmp_path, CPU)
    assert checkpoint.newest(tmp_path)[0]["iteration"] == 3


def test_a_checkpoint_is_due_some_minutes_after_the_last(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    saves = training._Saves(State(network(), Recipe(iterations=1, save_every=2), CPU), tmp_path, None)
    due = []
    for now[0] in (60.0, 121.0, 181.0, 242.0):
        due.append(saves.due())
        if due[-1]:
            saves.save()
    assert due == [False, True, False, True]


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


def test_too_many_bad_steps_in_a_row_end_the_run_with_what_to_do(tmp_path):
    def nothing_finite(start):
        return (sample_batch(i)._replace(img0=torch.full((2, 3, 32, 32), torch.nan)) for i in itertools.count(start))

    model = network()
    with pytest.raises(ValueError, match="3 steps in a row .* lower --lr_start"):
        fit(model, nothing_finite, loss, Recipe(iterations=9, log_every=1, max_bad_steps=3), tmp_path, CPU)
    assert same(model, network()) and checkpoint.newest(tmp_path)[0]["iteration"] == 3


def test_a_validation_hides_no_step_that_was_skipped(tmp_path):
    """Nor does an interval of the log that the run's end cuts short."""

    def spoilt(start):
        for iteration in itertools.count(start):
            batch = sample_batch(iteration)
            yield batch._replace(imgt=batch.imgt * torch.nan) if iteration != 2 else batch

    def validate(_):
        return {"psnr": 1.0}

    recipe = Recipe(iterations=5, log_every=4, eval_every=3, max_bad_steps=4)
    fit(network(), spoilt, loss, recipe, tmp_path / "a", CPU, validate=validate)
    assert [(row["iteration"], row["bad_steps"]) for row in rows(tmp_path / "a") if row["loss"]] == [
        ("4", "3"),
        ("5", "1"),
    ]
    for fatal in (Recipe(iterations=2, max_bad_steps=2), Recipe(iterations=9, eval_every=2, max_bad_steps=2)):
        with pytest.raises(ValueError, match="iteration 2: 2 steps in a row"):
            fit(network(), spoilt, loss, fatal, tmp_path / "b", CPU, validate=validate)
    assert not (tmp_path / "b" / "best.pth").exists()


def test_the_time_of_a_validation_is_none_of_the_steps(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(meter, "time", clock)
    sums = meter.Meter(CPU)
    sums.add({"rec": torch.ones(())}, torch.ones(()), torch.zeros(()), samples=8)
    clock.now += 2
    with sums.paused():
        clock.now += 100
    assert sums.read()["samples_per_s"] == 4


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


def test_clipping_bounds_the_gradient(tmp_path):
    norms = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]]).item())
        return original(self, *args, **kwargs)

    torch.optim.AdamW.step = step
    try:
        fit(network(), endless, loss, Recipe(iterations=2, clip_grad=0.01), tmp_path / "a", CPU)
        fit(network(), endless, loss, Recipe(iterations=2), tmp_path / "b", CPU)
    finally:
        torch.optim.AdamW.step = original
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


def test_a_run_shorter_than_its_start_takes_one_step_and_is_scored(tmp_path):
    scored = []

    def validate(net):
        scored.append(net)
        return {"psnr": 1.0}

    state = fit(network(), endless, loss, Recipe(minutes=1e-9), tmp_path, CPU, validate=validate)
    assert state.iteration == 1 and len(scored) == 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes by a tenth of a second each time it is looked at, however busy the machine is."""
    ticks = itertools.count()
    for module in (step, training):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 10))


def test_a_run_by_the_clock_ends_at_its_time_with_its_last_learning_rate(tmp_path, clock):
    state = fit(network(), endless, loss, Recipe(minutes=0.05, log_every=1), tmp_path, CPU)
    assert 0.05 * 60 <= state.seconds < 4 and state.iteration > 1
    rates = [float(row["lr"]) for row in rows(tmp_path)]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0]


def test_a_run_by_the_clock_is_never_silent_for_long(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(training, "SILENCE", 0)
    state = fit(network(), endless, loss, Recipe(minutes=0.05, log_every=10**6), tmp_path / "a", CPU)
    fit(network(), endless, loss, Recipe(iterations=3, log_every=10**6), tmp_path / "b", CPU)
    assert len(rows(tmp_path / "a")) >= state.iteration - 1 >= 1
    assert len(rows(tmp_path / "b")) == 1  # by the clock it would not repeat exactly


def test_a_recipe_needs_one_horizon():
    for wrong in ({}, {"iterations": 3, "minutes": 1.0}):
        with pytest.raises(ValueError, match="one of the two"):
            Recipe(**wrong)


def test_a_full_disk_is_told_and_the_run_goes_on_and_saves_when_there_is_room(tmp_path, monkeypatch, capsys):
    original, calls = torch.save, []

    def full_at_first(*args):
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 13996160 vs 13996052")
        original(*args)

    monkeypatch.setattr(torch, "save", full_at_first)
    fit(network(), endless, loss, Recipe(iterations=3, save_every=0), tmp_path, CPU)
    assert capsys.readouterr().out.count("trying again later: ") == 2
    assert checkpoint.newest(tmp_path)[0]["iteration"] == 3


def test_a_disk_that_is_full_at_the_last_save_is_an_error_and_the_checkpoint_before_it_stays(tmp_path):
    fit(network(), endless, loss, Recipe(iterations=1), tmp_path, CPU)
    before, content = (tmp_path / "latest.pth").read_bytes(), checkpoint.newest(tmp_path)[0]
    with files_up_to(2**20), pytest.raises(OSError, match=f"^{tmp_path}: the checkpoint could not be written; is the"):
        fit(network(), endless, loss, Recipe(iterations=2), tmp_path, CPU, resume=content)
    assert (tmp_path / "latest.pth").read_bytes() == before and not list(tmp_path.glob(".*"))


def test_the_best_that_finds_no_room_is_told_and_the_next_better_one_is_written(tmp_path, monkeypatch, capsys):
    original, scores = checkpoint.write, iter([3.0, 2.0, 1.0])
    writes = iter([OSError("no space left on device")])

    def full_at_first(*args):
        for error in writes:
            raise error
        original(*args)

    monkeypatch.setattr(checkpoint, "write", full_at_first)
    recipe = Recipe(iterations=3, eval_every=1)
    state = fit(network(), endless, loss, recipe, tmp_path, CPU, validate=lambda _: {"psnr": next(scores)})
    assert "iteration 1: the best, but not written: no space left on device" in capsys.readouterr().out
    assert state.best == checkpoint.newest(tmp_path)[0]["best"] == 2 and (tmp_path / "best.pth").is_file()


def test_amp_names_are_the_interpolators():
    from models.interpolator import PRECISIONS

    assert set(AMP) - {"none"} == set(PRECISIONS) - {"fp32"}


@pytest.mark.parametrize("fails", [False, True])
def test_no_algorithms_are_searched_in_validation_and_again_afterwards(tmp_path, monkeypatch, fails):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []

    def validate(_):
        seen.append(torch.backends.cudnn.benchmark)
        if fails:
            raise ValueError("cannot be read")
        return {"psnr": 1.0}

    with pytest.raises(ValueError) if fails else nullcontext():
        fit(network(), endless, loss, Recipe(iterations=1), tmp_path, CPU, validate=validate)
    assert seen == [False] and torch.backends.cudnn.benchmark
