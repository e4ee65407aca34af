"""The order of samples, and how batches are read: by processes that report what is wrong, leave signals to the run,
and end with it."""

import errno
import gc
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from processes import begin
from torch.utils.data import Dataset, IterableDataset, default_collate

from utils import batches, cli, distributed
from utils.batches import Order, begin_worker, default_workers, load, stream


def steps(count, **kwargs):
    return list(itertools.islice(iter(Order(**kwargs)), count))


def test_an_epoch_holds_every_sample_at_most_once_and_the_next_is_another():
    first, second = (sum(steps(6, length=13, batch_size=4)[k : k + 3], []) for k in (0, 3))
    assert len({index for index, _ in first}) == 12 and {epoch for _, epoch in first} == {0}
    assert {epoch for _, epoch in second} == {1}
    assert [index for index, _ in first] != [index for index, _ in second]


def test_another_seed_is_another_order():
    assert steps(3, length=13, batch_size=4, seed=1) != steps(3, length=13, batch_size=4, seed=2)


def test_the_order_goes_on_where_it_stood():
    whole = steps(20, length=13, batch_size=2, seed=4, accumulate=2)
    for start in range(8):
        assert steps(4, length=13, batch_size=2, seed=4, accumulate=2, start=start) == whole[2 * start : 2 * start + 4]


def test_ranks_and_accumulation_split_the_batch_of_one_rank(monkeypatch):
    whole = steps(3, length=26, batch_size=8)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(steps(6, length=26, batch_size=2, accumulate=2))
    for k in range(3):
        assert sorted(sum((share[2 * k] + share[2 * k + 1] for share in shares), [])) == sorted(whole[k])


def test_epochs_that_are_over_are_not_gone_through_again():
    assert steps(6, length=13, batch_size=4, ahead=2) == steps(6, length=13, batch_size=4, start=6)
    assert steps(4, length=13, batch_size=4, start=7, ahead=-1) == steps(4, length=13, batch_size=4, start=4)


def test_a_set_smaller_than_a_step_is_named():
    with pytest.raises(ValueError, match="3 samples do not fill one step of 4; give a smaller --batch_size"):
        Order(3, 4)


@pytest.mark.parametrize(("cores", "ranks", "workers"), [(64, "2", 8), (16, "4", 4), (2, "4", 0), (12, "many", 8)])
def test_reading_processes_share_the_cores_with_those_of_other_ranks(monkeypatch, cores, ranks, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert default_workers() == workers


class Spoilt(Dataset):
    """Samples of which one cannot be read."""

    def __len__(self):
        return 20

    def __getitem__(self, key):
        if key == 3:
            raise ValueError("3.png: the picture is cut short")
        return torch.zeros(2)


def test_a_sample_that_cannot_be_read_ends_the_reading_processes_at_once():
    batches = load(Spoilt(), [[k] for k in range(20)], workers=2)
    with pytest.raises(ValueError, match="3.png: the picture is cut short") as caught:
        list(batches)
    until = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    assert not multiprocessing.active_children() and caught  # even while the error is held


@pytest.fixture(params=["fork", "forkserver"])  # the defaults on Linux, the latter from Python 3.14 on
def started(request):
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(usual, force=True)


def test_a_reading_process_that_was_killed_is_one_line(typed, started):
    def main(_):
        batches = load(Spoilt(), [[k] for k in (0, 1, 2) * 99], workers=1)
        next(batches)
        (process,) = multiprocessing.active_children()
        time.sleep(0.3)  # until it holds the next batches ready
        process.kill()
        list(batches)

    done = typed(main, cli.Parser(""))
    assert done.status == 2 and done.err.count("\n") == 1
    assert re.search(r"DataLoader worker \(pid.*; if memory is short.* fewer --workers; ", done.err), done.err


class Unshared(Dataset):
    """Samples for which there is no shared memory: files, of which it is made, may not grow so large."""

    def __getitem__(self, key):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return torch.zeros(4096)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("collate", [default_collate, tuple])  # the former shares, else the queue does
def test_a_batch_that_cannot_be_handed_over_ends_the_run_in_one_line(typed, collate):
    done = typed(lambda _: list(load(Unshared(), [[0]], workers=1, collate=collate)), cli.Parser(""))
    assert done.status == 2 and done.err.count("\n") == 1
    assert re.search(r"(DataLoader worker|shared memory: File too large).*; if .*fewer --workers", done.err)


def test_reading_processes_that_cannot_be_started_are_one_line(typed, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batches.DataLoader, "__iter__", full)
    done = typed(lambda _: list(load(Spoilt(), [[0]], workers=1)), cli.Parser(""))
    told = "script.py: reading processes: No space left on device; if memory is short"
    assert done.status == 2 and done.err.count("\n") == 1 and done.err.startswith(told)


@pytest.mark.parametrize("made", [0, 2])  # queues for which there is still room: one for results, then one a process
def test_an_iterator_that_is_half_made_leaves_no_traceback(typed, monkeypatch, made):
    shared, printed = itertools.chain([torch.multiprocessing.Queue] * made, itertools.repeat(None)), []

    def queue():
        if (of := next(shared)) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return of()

    monkeypatch.setattr(torch.multiprocessing, "Queue", queue)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: printed.append(str(unraisable.exc_value)))
    done = typed(lambda _: list(load(Spoilt(), [[0]], workers=2)), cli.Parser(""))
    gc.collect()
    for process in multiprocessing.active_children():  # otherwise killed when the run exits
        process.kill()
        process.join()
    assert done.status == 2 and done.err.count("\n") == 1 and printed == []


class Settings(Dataset):
    """What a process is set to: its threads, and whether it ignores the signals that end the run."""

    def __getitem__(self, key):
        ignored = (signal.getsignal(kind) is signal.SIG_IGN for kind in cli.STOPPING)
        return torch.get_num_threads(), *ignored


def test_a_reading_process_takes_one_thread_and_leaves_signals_to_the_run():
    (told,) = load(Settings(), [[0]], workers=1, collate=tuple)
    assert told == ((1, *[True] * len(cli.STOPPING)),)


def begin_late(number):
    os.kill(os.getpid(), signal.SIGTERM)  # here PyTorch's handler would end the process
    begin_worker(number)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="it inherits nothing from its run")
def test_a_signal_to_a_reading_process_that_is_about_to_begin_is_left_to_the_run(monkeypatch):
    monkeypatch.setattr(batches, "begin_worker", begin_late)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert len(list(load(Settings(), [[0], [1]], workers=1, collate=tuple))) == 2
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_signal_while_reading_processes_end_interrupts_once_they_have(monkeypatch):
    kind = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    usual = kind._shutdown_workers

    def shut_down(iterator):
        os.kill(os.getpid(), signal.SIGTERM)
        usual(iterator)

    read = load(Settings(), [[0], [1]], workers=1, collate=tuple)
    next(read)
    (process,) = multiprocessing.active_children()
    monkeypatch.setattr(kind, "_shutdown_workers", shut_down)
    with cli.stopped_as_interrupted(), pytest.raises(KeyboardInterrupt):
        read.close()
    assert not process.is_alive()


class Missing(Dataset):
    def __getitem__(self, key):
        raise FileNotFoundError("im2.png: no such file")


def test_a_file_that_a_reading_process_misses_is_named_in_one_line():
    with pytest.raises(FileNotFoundError, match="^im2.png: no such file$"):
        next(load(Missing(), [[0]], workers=1))


LEFT = """
import torch
from torch.utils.data import TensorDataset
from utils.batches import load
batches = load(TensorDataset(torch.zeros(100, 1)), [[k] for k in range(100)], workers=1)
next(batches)
raise SystemExit("failed")
"""


def test_reading_processes_that_are_left_do_not_keep_a_failed_run_from_its_end():
    done = subprocess.run([sys.executable, "-c", LEFT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.strip() == "failed"


INTERRUPTED = """
import os, signal
from multiprocessing.process import BaseProcess
import torch
from torch.utils.data import TensorDataset
from utils import cli
from utils.batches import load

def start(process, usual=BaseProcess.start):
    usual(process)
    os.kill(os.getpid(), signal.SIGINT)

def main(_):
    BaseProcess.start = start
    list(load(TensorDataset(torch.zeros(100, 1)), [[k] for k in range(100)], workers=2))

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run(main, cli.Parser(""))
"""


def test_a_run_that_is_interrupted_while_it_starts_its_reading_processes_ends():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "-c: interrupted\n")


KILLED = """
import multiprocessing, os, signal, time
from utils.batches import begin_worker

def read(run):
    while os.getppid() == run:
        time.sleep(0.01)
    begin_worker(0)
    time.sleep(1000)

multiprocessing.get_context("fork").Process(target=read, args=(os.getpid(),)).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_reading_process_ends_even_where_its_run_was_killed_before_it_began():
    # Returns once nobody holds the output any more.
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL


class SpoiltStream(IterableDataset):
    def __iter__(self):
        yield from map(Spoilt().__getitem__, range(20))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_set_that_is_iterated_over_comes_as_it_was_raised(workers):
    items = stream(SpoiltStream(), workers)
    assert all(len(next(items)) == 2 for _ in range(3))
    with pytest.raises(ValueError, match="^3.png: the picture is cut short$"):
        next(items)


def test_what_reading_ahead_raises_is_raised_as_it_was():
    class Broken:
        def batch(self, keys):
            raise ValueError("frames.npy: gone")

    with pytest.raises(ValueError, match="^frames.npy: gone$"):
        next(batches.read(Broken(), Order(7, 2), workers=1))


class Collecting(Dataset):
    def __getitem__(self, key):
        return gc.collect()


def left_a_decoder(path):
    """In a process of its own: read a video, leave its decoder in a cycle, as errors may, and fork."""
    from utils import containers

    gc.disable()
    with containers.opened(path) as container:
        stream = containers.video_stream(container, path)
        next(containers.packets(container, stream)).decode()
    cycle = [stream]
    cycle.append(cycle)
    del container, stream, cycle
    print(len(list(load(Collecting(), [[0]], workers=1))))


def test_a_reading_process_does_not_wait_for_the_threads_of_a_decoder_that_it_inherits(tmp_path):
    from video_files import encode, moving

    source = encode(tmp_path / "in.mp4", moving(3))
    process = begin(source, work=left_a_decoder, log=tmp_path / "said.txt")
    process.join(60)
    ended = not process.is_alive()
    process.kill()
    assert ended and (tmp_path / "said.txt").read_text() == "1\n", (tmp_path / "said.txt").read_text()
