"""The loop, without a data set: when it ends, validates and saves, and what a stopped run keeps."""

import errno
import itertools
import math
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, files_up_to
from small_training import CPU, endless, loss, network, same, sample_batch
from training_runs import rows

import models
import train_gopro
import train_vimeo90k
from datasets import gopro
from utils import batches, checkpoint, cli, epochs, meter, step, training
from utils.step import OPTIMIZERS, Recipe, State
from utils.training import cosine, fit

pytestmark = pytest.mark.usefixtures("one_thread", "small_network")


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


def test_the_learning_rate_falls_along_a_cosine_every_iteration(tmp_path):
    fit(network(), endless, loss, Recipe(iterations=4, log_every=1), tmp_path, CPU)
    rates = [float(row["lr"]) for row in rows(tmp_path)]
    expected = [1e-5 + 9e-5 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert cosine(1e-4, 1e-5)(0) == pytest.approx(1e-4) and cosine(1e-4, 1e-5)(1) == pytest.approx(1e-5)


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


def test_a_signal_that_comes_twice_does_not_disturb_the_end_of_the_run(tmp_path):
    """Launchers send it twice at once; the second may come when the first has ended the steps."""

    def stopped(start):
        for batch in endless(start):
            signal.raise_signal(signal.SIGTERM)
            yield batch

    with cli.stopped_as_interrupted():
        with pytest.raises(SystemExit) as ended:
            fit(network(), stopped, loss, Recipe(iterations=9), tmp_path, CPU)
        with cli.undisturbed():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("kind", [kind for kind in cli.STOPPING if kind.name in ("SIGHUP", "SIGINT")])
def test_a_signal_that_is_ignored_as_under_nohup_or_in_the_background_stays_so(kind, tmp_path):
    def sending(start):
        for iteration in itertools.count(start):
            os.kill(os.getpid(), kind)
            yield sample_batch(iteration)

    before = signal.signal(kind, signal.SIG_IGN)
    try:
        assert fit(network(), sending, loss, Recipe(iterations=2), tmp_path, CPU).iteration == 2
        assert signal.getsignal(kind) == signal.SIG_IGN
    finally:
        signal.signal(kind, before)


def test_an_error_of_the_data_loses_no_step(tmp_path):
    def broken(start):
        yield from itertools.islice(endless(start), 3)
        raise ValueError("im2.png: cut short")

    with pytest.raises(ValueError, match="cut short"):
        fit(network(), broken, loss, Recipe(iterations=9), tmp_path, CPU)
    assert checkpoint.newest(tmp_path)[0]["iteration"] == 3
    assert (tmp_path / "train.log").read_text().endswith("ended after iteration 3: im2.png: cut short\n")


def test_the_log_of_a_run_holds_its_options_each_time_it_begins(tmp_path):
    given = {"config": {"seed": 3, "val_list": None}}
    fit(network(), endless, loss, Recipe(iterations=1), tmp_path, CPU, **given)
    given = {"config": {"seed": 4, "val_list": None}, "resume": checkpoint.newest(tmp_path)[0]}
    fit(network(), endless, loss, Recipe(iterations=2), tmp_path, CPU, **given)
    said = [line for line in (tmp_path / "train.log").read_text().splitlines() if "begins" in line]
    assert [line[20:] for line in said] == ["begins at iteration 0: seed 3", "begins at iteration 1: seed 4"]


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


def test_too_many_bad_steps_in_a_row_end_the_run_with_what_to_do(tmp_path):
    def nothing_finite(start):
        return (sample_batch(i)._replace(img0=torch.full((2, 3, 32, 32), torch.nan)) for i in itertools.count(start))

    model = network()
    with pytest.raises(ValueError, match="3 steps in a row .* lower --lr_start.* start from best.pth"):
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
    with files_up_to(2**20), pytest.raises(OSError, match="File too large") as error:
        fit(network(), endless, loss, Recipe(iterations=2), tmp_path, CPU, resume=content)
    assert error.value.errno == errno.EFBIG and error.value.filename == str(tmp_path / "latest.pth")
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
