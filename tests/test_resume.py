"""The training script as people run it: killed and gone on with, and given what is wrong."""

import os
import random
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from processes import begin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import (
    NAME,
    assert_same,
    rows,
    train_here,
    typed_options,
    wait_for,
    weights,
    weights_and_all,
)

import models
import train_gopro
import train_vimeo90k
from utils import batches, cli, epochs, runs
from utils.io import only_run

pytestmark = pytest.mark.usefixtures("one_thread", "small_network")


def test_a_run_leaves_what_it_learnt_and_what_it_said(whole):
    folder = whole / NAME
    assert {"best.pth", "latest.pth", "train.log", "metrics.csv"} <= {path.name for path in folder.iterdir()}
    board = EventAccumulator(str(folder)).Reload().Tags()
    assert {"loss", "lr", "psnr"} <= set(board["scalars"]) and board["images"] == [f"validation/{k}" for k in range(3)]
    losses = [float(row["loss"]) for row in rows(folder) if row["loss"]]
    assert len(losses) == 12 and np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    best = models.load(folder / "best.pth")
    assert sum(p.numel() for p in best.parameters()) == sum(p.numel() for p in models.build(NAME).parameters())
    assert not best.any_time  # of what was trained at t = 0.5 alone


def test_weights_that_know_t_go_on_as_those_of_one_half():
    for act in models.ACTIVATIONS:
        known, begun = models.build("IFRNet_S", act), train_vimeo90k.without_time(models.build("IFRNet_S", act))
        assert known.any_time and not begun.any_time
        begun.load_state_dict(known.state_dict())
        assert not begun.any_time
        frames = torch.rand(1, known.decoder4.convblock[0][0].in_channels, 8, 8)
        frames[:, -1] = 0.5
        for inside in (known, begun):
            inside.requires_grad_(False)
        expected, got = (model.decoder4.convblock[0][0](frames)[..., 1:-1, 1:-1] for model in (known, begun))
        torch.testing.assert_close(got, expected)


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(vimeo, whole, tmp_path, capsys):
    """Killed with no chance to save: in the first save, in a later one, and a moment after one, in a step."""
    options = ["--epochs", 6, "--batch_size", 4, "--log_every", 1, "--save_every", 0, "--resume", "auto"]
    folder = tmp_path / NAME

    def saving():
        return any(folder.glob(".latest.*.pth"))

    def saved(past):
        try:
            return (folder / "latest.pth").stat().st_mtime_ns > past
        except FileNotFoundError:  # also for a moment while the next one takes its place
            return False

    def wait_until(condition):
        while not condition():
            assert process.is_alive()
            time.sleep(0.002)

    for moment in ("first save", "later save", "step"):
        begun, process = time.time_ns(), begin("train_vimeo90k", *typed_options(vimeo, tmp_path, *options))
        if moment != "first save":
            for left in folder.glob(".latest.*.pth"):
                left.unlink()
            wait_until(lambda begun=begun: saved(begun))
        if moment != "step":
            wait_until(saving)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    capsys.readouterr()
    train_here(vimeo, tmp_path, *options)
    assert "passed over" not in capsys.readouterr().out
    assert_same(weights(whole), weights(tmp_path))


def test_killed_at_ten_random_moments_and_always_resumed_is_uninterrupted(vimeo, whole, tmp_path):
    """A run that is killed at random, each third time in the save that comes next, and gone on with until it is done;
    as many of them as ten kills take."""
    options = ["--epochs", 6, "--batch_size", 4, "--log_every", 1, "--save_every", 0, "--resume", "auto"]
    seconds = torch.load(whole / NAME / "latest.pth", weights_only=True)["seconds"]
    folder, kills, in_saves, done = tmp_path / "0", 0, 0, True

    def save():
        return any((folder / NAME).glob(f".*.{process.pid}.pth"))

    while not done or kills < 10 or not in_saves:
        folder = tmp_path / str(kills) if done else folder
        process = begin("train_vimeo90k", *typed_options(vimeo, folder, *options))
        process.join(random.uniform(0, seconds) if kills < 10 or not in_saves else None)
        while kills % 3 == 2 and process.is_alive() and not save():
            time.sleep(0.001)
        process.kill()
        process.join()
        done = process.exitcode == 0
        if done:
            assert_same(weights(whole), weights(folder))
        else:
            assert process.exitcode == -signal.SIGKILL
            kills, in_saves = kills + 1, in_saves + save()
    print(f"{kills} kills, {in_saves} of them in a save")


def test_a_cut_checkpoint_is_passed_over_for_the_one_before_it(vimeo, whole, tmp_path, capsys):
    folder = tmp_path / NAME
    shutil.copytree(whole / NAME, folder)
    kept = torch.load(folder / "latest.pth", weights_only=True)
    torch.save({**kept, "iteration": 8}, folder / "previous.pth")
    (folder / "latest.pth").write_bytes((folder / "latest.pth").read_bytes()[:-1000])
    train_here(vimeo, tmp_path, "--batch_size", 4, "--iterations", 9, "--resume", "auto")
    said = capsys.readouterr().out
    assert "passed over: " in said and "latest.pth: not an intact checkpoint" in said
    assert torch.load(folder / "latest.pth", weights_only=True)["iteration"] == 9


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_over_what_is_left(vimeo, tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    for name in ("latest.pth", "best.pth"):
        (folder / name).write_bytes(b"PK cut")
    with pytest.raises(ValueError, match="latest.pth: not an intact checkpoint.*; .*--log_path"):
        train_here(vimeo, tmp_path, "--batch_size", 4, "--resume", "auto")
    assert sorted(path.name for path in folder.iterdir()) == ["best.pth", "latest.pth"]


def test_a_run_that_has_reached_its_end_says_so(vimeo, whole, tmp_path, capsys):
    shutil.copytree(whole / NAME, tmp_path / NAME)
    iteration = torch.load(tmp_path / NAME / "latest.pth", weights_only=True)["iteration"]
    train_here(vimeo, tmp_path, "--batch_size", 4, "--iterations", 2, "--resume", "auto")
    assert f"nothing to do at iteration {iteration}" in capsys.readouterr().out
    assert torch.load(tmp_path / NAME / "latest.pth", weights_only=True)["config"]["iterations"] == 12


def test_a_resumed_run_says_which_options_are_others_now(vimeo, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(epochs, "fit", lambda *args, **kwargs: None)
    shutil.copytree(whole / NAME, tmp_path / NAME)
    same = ["--batch_size", 4, "--val_list", vimeo / "val.txt", "--resume", "auto"]
    for options, expected in (
        (["--epochs", 6, "--log_every", 5], set()),
        (["--epochs", 6, "--lr_start", 3e-3], {"lr_start 0.001 until now, and 0.003 from here on"}),
        # Half the batch is twice the steps an epoch: another horizon, another place on the cosine.
        (["--batch_size", 2, "--iterations", 24], {f"{name} until now, and {now} from here on" for name, now in
                                                   (("batch_size 4", 2), ("step_size 4", 2), ("iterations 12", 24))}),
    ):  # fmt: skip
        train_here(vimeo, tmp_path, *same, *options)
        said = capsys.readouterr().out.splitlines()
        assert {line.removeprefix("note: the run used ") for line in said if "the run used" in line} == expected


def test_epochs_are_not_told_in_steps_of_another_size(vimeo, whole, tmp_path):
    """Of 8 samples in steps of 4, 12 iterations are 6 epochs, and of two more 8 in steps of 2."""
    shutil.copytree(whole / NAME, tmp_path / NAME)
    before = (tmp_path / NAME / "latest.pth").read_bytes()
    with pytest.raises(ValueError, match="steps of 4 samples until now, not of 2; .* with --iterations 20$"):
        train_here(vimeo, tmp_path, "--epochs", 8, "--batch_size", 2, "--resume", "auto")
    assert (tmp_path / NAME / "latest.pth").read_bytes() == before


def test_epochs_are_counted_on_after_steps_of_another_size(vimeo, whole, tmp_path, capsys):
    """Of 8 samples, 12 steps of 4 are 6 epochs, 4 more steps of 2 are the seventh, and 4 more the eighth."""
    shutil.copytree(whole / NAME, tmp_path / NAME)
    options = ["--batch_size", 2, "--val_list", vimeo / "val.txt", "--resume", "auto"]
    train_here(vimeo, tmp_path, "--iterations", 16, *options)
    assert "16 iterations of 2 (1 x 2), 7.0 epochs" in capsys.readouterr().out
    with pytest.raises(ValueError, match="steps of 2 samples until now, not of 1; .* with --iterations 24$"):
        train_here(vimeo, tmp_path, "--epochs", 8, *options, "--batch_size", 1)
    train_here(vimeo, tmp_path, "--epochs", 8, *options)
    assert weights_and_all(tmp_path)["iteration"] == 20
    older = {"iteration": 12, "config": {"step_size": 4}}  # which does not hold the number of samples
    with pytest.raises(ValueError, match="with --iterations 20$"):
        epochs.horizon(8, batches.Order(8, 2), older)
    assert epochs.epochs_ahead(batches.Order(8, 2), older) == 3


def test_epochs_are_counted_on_in_a_set_of_another_size(vimeo, whole, tmp_path, capsys):
    """Of 8 samples, 12 steps of 4 are 6 epochs; of 4 samples, 2 more steps are the seventh and eighth."""
    shutil.copytree(whole / NAME, tmp_path / NAME)
    fewer = shutil.copytree(vimeo, tmp_path / "fewer")
    names = (fewer / "tri_trainlist.txt").read_text().splitlines()
    (fewer / "tri_trainlist.txt").write_text("\n".join(names[4:]))
    options = ["--batch_size", 4, "--val_list", fewer / "val.txt", "--resume", "auto"]
    train_here(fewer, tmp_path, "--epochs", 8, *options)
    assert "14 iterations of 4 (1 x 4), 8.0 epochs" in capsys.readouterr().out
    assert weights_and_all(tmp_path)["iteration"] == 14
    train_here(vimeo, tmp_path, "--epochs", 9, *options)
    assert "16 iterations of 4 (1 x 4), 9.0 epochs" in capsys.readouterr().out


def test_a_run_stands_at_its_own_epoch_whatever_the_size_of_steps_now(vimeo, whole, tmp_path):
    latest, options = whole / NAME / "latest.pth", ["--batch_size", 2, "--iterations", 13]
    with pytest.raises(ValueError, match="stands at epoch 6, not 3"):
        train_here(vimeo, tmp_path, *options, "--resume_path", latest, "--resume_epoch", 3)
    train_here(vimeo, tmp_path, *options, "--resume_path", latest, "--resume_epoch", 6)


def test_a_run_without_weights_to_use_does_not_end_well(vimeo, tmp_path, monkeypatch):
    monkeypatch.setattr(epochs, "fit", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match="IFRNet_XS: no best.pth, so no weights to use"):
        train_here(vimeo, tmp_path, "--batch_size", 4)


def test_a_resumed_run_says_that_its_data_are_others_now(vimeo, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(epochs, "fit", lambda *args, **kwargs: None)
    shutil.copytree(whole / NAME, tmp_path / NAME)
    moved = shutil.copytree(vimeo, tmp_path / "moved", ignore=shutil.ignore_patterns("flow"))
    names = (moved / "tri_trainlist.txt").read_text().splitlines()
    (moved / "tri_trainlist.txt").write_text("\n".join(names[1:]))
    options = ["--iterations", 12, "--batch_size", 4, "--val_list", moved / "val.txt", "--resume", "auto"]
    train_here(moved, tmp_path, *options)
    said = capsys.readouterr().out
    for change in ("flow True until now, and False from here on", "samples 8 until now, and 7 from here on"):
        assert f"note: the run used {change}" in said


@pytest.mark.parametrize("kind", cli.STOPPING)
def test_a_signal_saves_and_ends_with_its_own_status(vimeo, whole, tmp_path, kind):
    options = ["--epochs", 6, "--batch_size", 4, "--log_every", 1, "--workers", 1]
    log = tmp_path / "out.txt"
    process = begin("train_vimeo90k", *typed_options(vimeo, tmp_path, *options), log=log)
    wait_for(lambda: "iteration 3/12" in log.read_text(), process, log)
    for _ in range(2):  # at once, as launchers do
        os.killpg(process.pid, kind)  # as a terminal or a scheduler does: to the reading processes too
        time.sleep(0.02)
    process.join()
    assert process.exitcode == 128 + kind, log.read_text()
    assert f"stopped by {kind.name} after iteration" in log.read_text() and "Traceback" not in log.read_text()
    assert log.read_text().strip().endswith("; --resume auto continues")
    with pytest.raises(ValueError, match="a run is here; --resume auto continues it"):
        train_here(vimeo, tmp_path, *options)
    if kind == signal.SIGTERM:
        train_here(vimeo, tmp_path, *options, "--workers", 0, "--resume", "auto")
        assert_same(weights(whole), weights(tmp_path))


def test_resume_by_path_takes_runs_and_bare_weights(vimeo, whole, tmp_path, capsys):
    latest, best = whole / NAME / "latest.pth", whole / NAME / "best.pth"
    short = ["--batch_size", 4, "--epochs", 7]
    with pytest.raises(ValueError, match="stands at epoch 6, not 3"):
        train_here(vimeo, tmp_path / "x", *short, "--resume_path", latest, "--resume_epoch", 3)
    assert not (tmp_path / "x").exists()
    train_here(vimeo, tmp_path / "a", *short, "--resume_path", latest, "--resume_epoch", 6)
    assert "weights alone" not in capsys.readouterr().out
    train_here(vimeo, tmp_path / "b", *short, "--resume_path", best, "--resume_epoch", 6)
    assert "best.pth: weights alone, taken as those of epoch 6; the optimizer starts afresh" in capsys.readouterr().out
    runs = [torch.load(tmp_path / k / NAME / "latest.pth", weights_only=True) for k in ("a", "b")]
    assert runs[0]["iteration"] == runs[1]["iteration"] == 14
    steps = [run["optimizer"]["state"][0]["step"].item() for run in runs]
    assert steps == [14, 2]  # the optimizer's memory went on, and began anew


def test_the_best_of_another_validation_set_is_none(vimeo, whole, tmp_path):
    shutil.copytree(whole / NAME, tmp_path / NAME)
    content = weights_and_all(tmp_path)
    torch.save({**content, "best": 99.0}, tmp_path / NAME / "latest.pth")
    before = (tmp_path / NAME / "best.pth").stat().st_mtime_ns
    moved = shutil.copytree(vimeo, tmp_path / "moved")
    train_here(moved, tmp_path, "--batch_size", 4, "--epochs", 6, "--resume", "auto", "--val_list", moved / "val.txt")
    assert weights_and_all(tmp_path)["best"] == 99  # it is the same set, elsewhere
    train_here(vimeo, tmp_path, "--batch_size", 4, "--epochs", 7, "--resume", "auto")  # the list's last, not val.txt
    assert weights_and_all(tmp_path)["best"] < 99
    assert (tmp_path / NAME / "best.pth").stat().st_mtime_ns > before


def test_a_finished_run_that_is_judged_anew_remembers_by_what(vimeo, whole, tmp_path, capsys):
    """Or its best would be held against scores of the samples before."""
    shutil.copytree(whole / NAME, tmp_path / NAME)
    for anew in (True, False):
        train_here(vimeo, tmp_path, "--batch_size", 4, "--iterations", 12, "--resume", "auto")
        assert ("best.pth starts afresh" in capsys.readouterr().out) == anew


def test_a_run_of_another_recipe_is_not_gone_on_with(whole, tmp_path, capsys):
    shutil.copytree(whole / NAME, tmp_path / NAME)
    args = train_gopro.parser().parse_args(["--model_name", NAME, "--log_path", str(tmp_path), "--resume", "auto"])
    with pytest.raises(ValueError, match="a run of train_vimeo90k.py is here; give another --log_path"):
        runs.find_resume(args, tmp_path / NAME, 1)
    theirs = whole / NAME / "latest.pth"
    args = train_gopro.parser().parse_args(["--resume_path", str(theirs)])
    with pytest.raises(ValueError, match=f"{theirs}: of a run of train_vimeo90k.py; its best.pth has weights to start"):
        runs.find_resume(args, tmp_path / "IFRNet", 1)
    args.resume_path = str(whole / NAME / "best.pth")
    assert runs.find_resume(args, tmp_path / "IFRNet", 1)["iteration"] == 0


def test_shipped_weights_are_started_from_by_their_name(tmp_path):
    args = train_gopro.parser().parse_args(["--resume_path", "IFRNet_S", "--resume"])
    content = runs.find_resume(args, tmp_path / NAME, 1)
    assert args.resume == "auto" and content["iteration"] == 0
    shipped = models.load("IFRNet_S").state_dict()
    assert all(torch.equal(shipped[name], value.float()) for name, value in content["model"].items())


@pytest.mark.parametrize("left", ["latest.pth", "previous.pth"])
def test_a_run_of_which_one_checkpoint_is_left_is_not_overwritten(vimeo, whole, tmp_path, left):
    (tmp_path / NAME).mkdir()
    shutil.copy(whole / NAME / "latest.pth", tmp_path / NAME / left)
    for more in ([], ["--resume_path", whole / NAME / "best.pth"]):
        with pytest.raises(ValueError, match="IFRNet_XS: a run is here; --resume auto continues it"):
            train_here(vimeo, tmp_path, "--batch_size", 4, *more)


def test_two_runs_do_not_write_into_one_folder(vimeo, tmp_path):
    """Nor is a folder held by a reading process of a run that was killed."""
    options = ["--epochs", 300, "--batch_size", 4, "--log_every", 1, "--workers", 1]
    log = tmp_path / "out.txt"
    process = begin("train_vimeo90k", *typed_options(vimeo, tmp_path, *options), log=log)
    wait_for(lambda: "iteration 2/" in log.read_text(), process, log)
    with pytest.raises(ValueError, match="IFRNet_XS: another run is at work here"):
        train_here(vimeo, tmp_path, *options)
    process.kill()
    process.join()
    with only_run(tmp_path / NAME):
        pass
    assert not list((tmp_path / NAME).glob(".lock"))


def test_metrics_that_another_program_saved_are_named(vimeo, whole, tmp_path):
    shutil.copytree(whole / NAME, tmp_path / NAME)
    metrics = tmp_path / NAME / "metrics.csv"
    metrics.write_text(metrics.read_text().replace(",", ";"))
    with pytest.raises(ValueError, match="metrics.csv: its columns are not those of a run; move it away"):
        train_here(vimeo, tmp_path, "--batch_size", 4, "--epochs", 7, "--resume", "auto")


def test_a_run_that_goes_on_elsewhere_has_a_best_of_its_own(vimeo, whole, tmp_path, capsys):
    """The best so far may be out of reach, of other data: the new folder would then never get any weights to use."""
    content = torch.load(whole / NAME / "latest.pth", weights_only=True)
    torch.save({**content, "best": 99.0}, tmp_path / "latest.pth")
    train_here(vimeo, tmp_path, "--batch_size", 4, "--epochs", 7, "--resume_path", tmp_path / "latest.pth")
    assert models.load(tmp_path / NAME / "best.pth")
    said = capsys.readouterr().out
    assert "iteration 12: psnr" in said and "(best)" in said
    assert torch.load(tmp_path / NAME / "latest.pth", weights_only=True)["best"] < 99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model_name", "IFRNet_XL"], "IFRNet_XL"),
        (["--crop", "40"], "40 is not a multiple of 16"),
        (["--crop", "64"], "hold no crop of 64x64; give a smaller --crop"),
        (["--batch_size", "9"], "8 samples do not fill one step of 9"),
        (["--batch_size", "0"], "'0' is not a whole number from 1 up"),
        (["--clip_grad", "-1"], "argument --clip_grad: '-1' is not a number from 0 up"),
        (["--lr_start", "nan"], "argument --lr_start: 'nan' is not a number from 0 up"),
        (["--ema", "2"], "argument --ema: '2' is not a number from 0 to below 1"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number from 0 up"),
        (["--seed", str(2**63)], f"argument --seed: '{2**63}' is too large for a seed"),
        (["--workers", "-1"], "argument --workers: '-1' is not a whole number from 0 up"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--world_size", "4"], "--nproc_per_node=4"),
        (["--resume_epoch", "4"], "needs --resume_path"),
        (["--batch_size", "x"], "'x' is not a whole number from 1 up"),
        (["--lr_start", "x"], "'x' is not a number from 0 up"),
        (["--device", "cuda:99"], "no device 'cuda:99' here"),
        (["--cache", "gpu"], "--cache gpu needs a packed set, not "),
        (["--data", "clips:.", "--val_list", "none.txt"], "none.txt: no such list of names"),
        (["--data", "clips:.", "--val_list", "blank.txt"], "blank.txt: the list is empty"),
        (["--clip_stride", "2"], "--clip_stride 2 is for clips"),
        (["--resume_path", "missing.pth"], "missing.pth: no such checkpoint"),
        (["--data", "clips:"], "--data clips: names no folder"),
        (["--val_list", "missing.txt"], ": missing.txt: no such list of triplets, neither here nor in "),
        (["--val_list", "tri_trainlist.txt"], "all of them for validation; give another --val_list"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_people_get_wrong_is_one_line(vimeo, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    shutil.copy(vimeo / "tri_trainlist.txt", tmp_path)
    (tmp_path / "blank.txt").write_text("\n\n")
    monkeypatch.setattr(
        sys, "argv", ["train_vimeo90k.py", *typed_options(vimeo, tmp_path / "run", "--batch_size", 4, *options)]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.run(train_vimeo90k.main, train_vimeo90k.parser())
    errors = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and message in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "run" / NAME / "latest.pth").exists()


def test_a_run_of_another_network_is_named(vimeo, whole, tmp_path):
    for name, whose in (("latest.pth", "IFRNet_XS with prelu"), ("best.pth", "another network")):
        path = whole / NAME / name
        with pytest.raises(ValueError, match=f"{path}: weights of {whose}; give its --model_name and --activation"):
            train_here(vimeo, tmp_path, "--batch_size", 4, "--model_name", "IFRNet", "--resume_path", path)
