"""Two ranks on this machine, over gloo: what each is told, its share, and what all of them know afterwards."""

import json
import os
import runpy
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from processes import begin

import train_gopro
from utils import cli, distributed

LAUNCHERS = ["torch.distributed.run", "torch.distributed.launch"]

SCRIPT = f"""
import json, sys, torch
sys.path.insert(0, {str(ROOT)!r})
from utils import cli, distributed

def main(args):
    with distributed.ranks(args) as device:
        share = distributed.shard(list("abcde"))
        seen = distributed.gather({{"rank": distributed.rank(), "share": share}})
        total = distributed.sums({{"n": len(share), "tenths": 0.1}})
        distributed.barrier()
        own = torch.full((2,), 5 + distributed.rank())
        distributed.as_on_main([own])
        answer = dict(shared=own.tolist(),
                      world=distributed.world_size(), main=distributed.is_main(), seen=seen, total=total,
                      device=str(device), share=share)
    with open(f"{{args.out}}/{{answer['main']}}.json", "w") as file:
        json.dump(answer, file)

parser = cli.Parser("two ranks")
distributed.add_options(parser)
cli.add_device(parser)
parser.add_argument("--out")
if __name__ == "__main__":
    cli.run(main, parser)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def alone(script, tmp_path, typed):
    """Run the script in this process, which no launcher started."""
    names = runpy.run_path(str(script))
    return lambda *options: typed(names["main"], names["parser"], "--device", "cpu", "--out", tmp_path, *options)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_share_all_and_know_all_under_both_launchers(script, tmp_path, launcher):
    options = ["--world-size", "2", "--device", "cpu", "--out", str(tmp_path)]
    process = begin(launcher, "--standalone", "--nproc_per_node=2", script, *options, log=tmp_path / "said.txt")
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "said.txt").read_text()
    main, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("True", "False"))
    assert main["shared"] == other["shared"] == [5, 5]
    assert main["world"] == other["world"] == 2 and main["device"] == other["device"] == "cpu"
    assert main["share"] == ["a", "c", "e"] and other["share"] == ["b", "d"]  # each one once, nothing padded
    assert main["seen"] == other["seen"] == [{"rank": 0, "share": main["share"]}, {"rank": 1, "share": other["share"]}]
    assert main["total"] == other["total"] == {"n": 5, "tenths": pytest.approx(0.2, abs=1e-12)}


def test_without_a_launcher_the_one_rank_has_everything(alone, tmp_path):
    done = alone("--world_size", "1")
    assert done.status == 0, done.err
    answer = json.loads((tmp_path / "True.json").read_text())
    assert answer["world"] == 1 and answer["share"] == list("abcde") and answer["total"]["n"] == 5


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--world_size", "4"], "--nproc_per_node=4"), (["--local_rank", "3"], "LOCAL_RANK=0")],
)
def test_options_that_contradict_the_launcher_are_one_line(alone, tmp_path, options, named):
    done = alone(*options)
    assert done.status == 2 and named in done.err and len(done.err.splitlines()) == 1
    assert not list(tmp_path.glob("*.json"))


def test_a_broken_environment_is_one_line_and_keeps_nobody_from_the_help(alone, monkeypatch):
    for number in ("0", "x"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", number)
        assert 1 <= train_gopro.parser().get_default("workers") <= 8
    done = alone()
    assert done.status == 2 and "LOCAL_WORLD_SIZE='x' in the environment is not a number" in done.err


def test_shares_of_any_length_are_a_partition(monkeypatch):
    for world in (1, 2, 3, 7):
        monkeypatch.setattr(distributed, "world_size", lambda world=world: world)
        for length in (0, 1, 6, 7, 20):
            shares = []
            for rank in range(world):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                shares.append(distributed.shard(range(length)))
            assert sorted(sum(shares, [])) == list(range(length))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_rank_of_a_machine_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed._device(torch.device("cuda"), 1, here=2) == torch.device("cuda:1")
    assert distributed._device(torch.device("cpu"), 1, here=2) == torch.device("cpu")
    with pytest.raises(ValueError, match="one GPU for 2 processes"):
        distributed._device(torch.device("cuda:0"), 1, here=2)
    with pytest.raises(ValueError, match="3 processes on this machine, but 2 GPUs"):
        distributed._device(torch.device("cuda"), 1, here=3)


def waiting_for_ranks(log, seconds):
    def main(args):
        meet = dist.rendezvous

        def told(*args, **kwargs):
            Path(log).write_text("joining")
            return meet(*args, **kwargs)

        dist.rendezvous, distributed.MEETING = told, timedelta(seconds=int(seconds))
        with distributed.ranks(args):
            pass

    options = cli.Parser("")
    distributed.add_options(options)
    cli.add_device(options)
    sys.argv[1:] = ["--device", "cpu"]
    cli.run(main, options)


def rank_without_others(tmp_path, rank, seconds, **environment):
    """A rank of two whose other one and launcher are not there, which it looks for so many seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
    words = (tmp_path / "log", seconds)
    return begin(*words, work=waiting_for_ranks, log=tmp_path / "said.txt", **about, **environment)


@pytest.mark.parametrize("kind", cli.STOPPING)
def test_a_rank_that_waits_for_others_in_vain_can_be_stopped(tmp_path, kind):
    """As where its launcher was killed: PyTorch would go on for minutes."""
    process = rank_without_others(tmp_path, "1", 60)
    until = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process.pid, kind)
    process.join(10)
    ended = not process.is_alive()
    process.kill()
    assert ended and process.exitcode == -kind


@pytest.mark.parametrize(("rank", "agent"), [("0", "True"), ("1", "True"), ("0", "False"), ("1", "False")])
def test_a_rank_whose_launcher_or_others_are_gone_ends_with_one_line(tmp_path, rank, agent):
    """agent: whether torchrun holds what ranks meet at, and was killed; otherwise the first rank does."""
    process = rank_without_others(tmp_path, rank, 1, TORCHELASTIC_USE_AGENT_STORE=agent)
    process.join(30)
    ended = not process.is_alive()
    process.kill()
    said = (tmp_path / "said.txt").read_text()
    assert ended and process.exitcode == 2, said
    assert "the other processes of this run, or their launcher, cannot be met: " in said.splitlines()[-1]
    assert "Traceback" not in said
