"""The training script on several processes and nodes: the weights of one, whatever happens to one of them."""

import itertools
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import run_ranks
from training_runs import NAME, assert_same, launch, train_here, typed_options, validations, weights

import models
from datasets.vimeo90k import Vimeo90K
from utils import batches, distributed
from utils.step import OPTIMIZERS
from utils.validation import Validation

pytestmark = pytest.mark.usefixtures("one_thread", "small_network")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_ranks_make_the_weights_of_one(vimeo, whole, tmp_path, optimizer):
    common = ["--epochs", 6, "--val_list", vimeo / "val.txt", "--optimizer", optimizer]
    if optimizer != "adamw":
        whole = tmp_path / "whole"
        train_here(vimeo, whole, "--batch_size", 4, *common)
    options = typed_options(vimeo, tmp_path, "--world_size", 2, "--batch_size", 1, "--accumulate", 2, *common)
    (status, said), (other, others) = run_ranks(tmp_path, *[("train_vimeo90k", *options)] * 2)
    assert status == other == 0, said + others
    one, two = weights(whole), weights(tmp_path)
    torch.manual_seed(0)
    fresh = models.build(NAME).state_dict()
    assert max((one[name] - fresh[name]).abs().max() for name in one) > 5e-3  # twelve steps of 1e-3 and less
    if optimizer == "adamw":
        assert_same(one, two, tolerance=1e-5)
    # Muon turns small differences into larger ones, in directions that have hardly any gradient.
    kernels = [name for name in one if one[name].ndim == 4]
    off, moved = (torch.cat([(one[k] - to[k]).flatten() for k in kernels]).norm() for to in (two, fresh))
    assert off < 0.1 * moved
    scores = [validations(folder) for folder in (whole, tmp_path)]  # of three samples: neither rank has as many
    assert len(scores[0]) == 6 and scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_two_ranks_score_the_statistics_of_batchnorm_that_are_kept(vimeo, tmp_path):
    options = ["--activation", "gelu+bn", "--epochs", 2, "--batch_size", 2, "--val_list", vimeo / "val.txt"]
    ended = run_ranks(tmp_path, *[("train_vimeo90k", *typed_options(vimeo, tmp_path, "--world_size", 2, *options))] * 2)
    assert [status for status, _ in ended] == [0, 0], ended
    held = Vimeo90K(vimeo, (vimeo / "val.txt").read_text().split(), flow=False)
    kept = models.load(tmp_path / NAME / "best.pth")
    score = Validation(held, torch.device("cpu"))(kept)["psnr"]
    assert score == pytest.approx(max(validations(tmp_path)), abs=1e-4)  # the log has four digits


def test_what_one_rank_cannot_read_loses_no_step_of_all(vimeo, tmp_path):
    """Of two ranks, the second meets the broken picture in the third step; the first is the one that saves."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(vimeo, spoilt)
    index = next(itertools.islice(batches.Order(8, 2), 2, None))[1][0]  # as one rank: the second half of the step
    picture = spoilt / "sequences" / f"00001/{index + 1:04}" / "im2.png"
    picture.write_bytes(picture.read_bytes()[:100])
    launcher, log = ["--standalone", "--nproc_per_node=2"], tmp_path / "out.txt"
    process = launch(log, launcher, spoilt, tmp_path, "--epochs", 6, "--batch_size", 1)
    process.join()
    said = log.read_text()
    assert process.exitcode == 1, said
    assert said.count(f"{picture}: the picture is cut short") == 1 and "train_vimeo90k.py:" in said
    assert torch.load(tmp_path / NAME / "latest.pth", weights_only=True)["iteration"] == 2
    assert (tmp_path / NAME / "train.log").read_text().endswith("iteration 2: another process has an error\n")
    shutil.copytree(vimeo, spoilt, dirs_exist_ok=True)
    train_here(spoilt, tmp_path, "--epochs", 6, "--batch_size", 2, "--resume", "auto")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the process to kill in /proc")
def test_torchrun_starts_a_killed_process_again_and_nothing_is_lost(vimeo, whole, tmp_path):
    options = ["--epochs", 6, "--batch_size", 4, "--log_every", 1, "--save_every", 0, "--resume", "auto"]
    launcher, log = ["--standalone", "--nproc_per_node=1", "--max-restarts=1"], tmp_path / "out.txt"
    process = launch(log, launcher, vimeo, tmp_path, *options)
    while not (tmp_path / NAME / "latest.pth").exists():
        assert process.is_alive(), log.read_text()
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert log.read_text().count("IFRNet_XS on 1 cpu") == 2
    assert_same(weights(whole), weights(tmp_path))


def test_two_nodes_make_the_weights_of_one_process(vimeo, whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    nodes, logs = [], [tmp_path / f"{rank}.txt" for rank in range(2)]
    for rank, log in enumerate(logs):
        launcher = [*address, f"--node_rank={rank}"]
        nodes.append(launch(log, launcher, vimeo, tmp_path, "--epochs", 6, "--batch_size", 2))
    for node in nodes:
        node.join()
    said, others = (log.read_text() for log in logs)
    assert [node.exitcode for node in nodes] == [0, 0], said + others
    assert "IFRNet_XS on 2 cpu" in said and "iteration" not in others
    assert_same(weights(whole), weights(tmp_path), 1e-5)


def test_machines_that_do_not_share_the_folder_of_a_run_say_so(vimeo, whole, tmp_path):
    options = ["--epochs", 6, "--batch_size", 2, "--resume", "auto"]
    each = [("train_vimeo90k", *typed_options(vimeo, folder, *options)) for folder in (whole, tmp_path / "own")]
    for _, said in run_ranks(tmp_path, *each):
        line = next(line for line in said.splitlines() if line.startswith("train_vimeo90k.py: "))
        assert "iteration to resume from is 12 for process 0 and none for process 1: all machines need" in line


def test_machines_whose_lists_have_one_length_and_other_names_say_so(vimeo, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "sequences").symlink_to(vimeo / "sequences")
    (other / "flow").symlink_to(vimeo / "flow")
    first, second, *rest = (vimeo / "tri_trainlist.txt").read_text().split()
    (other / "tri_trainlist.txt").write_text("\n".join([second, first, *rest]))
    options = ["--iterations", 1, "--batch_size", 1]
    each = [("train_vimeo90k", *typed_options(data, tmp_path, *options)) for data in (vimeo, other)]
    for _, said in run_ranks(tmp_path, *each):
        line = next(line for line in said.splitlines() if line.startswith("train_vimeo90k.py: "))
        assert "checksum of the lists is " in line and "the same lists" in line


def test_what_ranks_do_not_agree_on_is_named_on_all_of_them(monkeypatch):
    for every in ([1, 1, 2], [1, 2, 1]):
        held = [{"seed": 0, "samples": n} for n in every]
        monkeypatch.setattr(distributed, "gather", lambda _, held=held: held)
        with pytest.raises(ValueError, match=f"samples is 1 for process 0 and 2 for process {every.index(2)}: "):
            distributed.agree(held[0])
    monkeypatch.undo()
    distributed.agree(held[0])  # alone


def test_an_error_of_one_rank_ends_the_others_without_a_word(monkeypatch):
    monkeypatch.setattr(distributed, "maximum", lambda _: torch.tensor(1.0))
    with pytest.raises(SystemExit) as stopped, distributed.together():
        pass
    assert stopped.value.code == 2
    with pytest.raises(OSError, match="its own"), distributed.together():
        raise OSError("its own")
