"""Scripts in processes of their own that begin at once: one process imports, and all others are its copies.
They know the small network.

Under a launcher each process imports for seconds; what launchers tell ranks is tested in test_distributed.py.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from functools import cache
from multiprocessing import forkserver

import pytest
from conftest import ROOT, SMALL
from torch.distributed import run

import models

SLOW = ["av", "cv2", "torch._dynamo", "torch.utils.tensorboard"]  # what takes long to import
IMPORTED = ["processes", *SLOW, "train_vimeo90k", "interpolate_video"]


@cache
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as during:
        during.setenv("OMP_NUM_THREADS", "1")
        during.setenv("PYTHONWARNINGS", "ignore:resource_tracker")  # it tells what killed processes leave
        during.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        forkserver.ensure_running()
    return context


def typed(script, *options):
    """In the new process: what the script does when it is typed."""
    sys.argv[1:] = options
    runpy.run_module(script, run_name="__main__", alter_sys=True)


def torchrun(*words):
    """In the new process: what torchrun does when it is typed, but that its ranks are copies, too."""
    make = run.config_from_args

    def of_copies(args):
        config, *_ = make(args)
        config.start_method = "fork"
        return config, typed, (args.training_script, *args.training_script_args)

    run.config_from_args = of_copies
    run.main(words)


def apart(work, words, log, environment):
    multiprocessing.set_start_method(None, force=True)  # the usual one of a process that nobody forked
    os.setsid()  # signals to it and to its reading processes are none to the tests
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # started by nohup, tests ignore it
    os.environ.update(environment)
    models.VARIANTS.update(SMALL)
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    work(*words)


def begin(script, *options, log=os.devnull, work=typed, **environment):
    """Start a script by the name of its module. log: the file for all that it says."""
    open(log, "w").close()  # it is read at once
    process = forks().Process(target=apart, args=(work, [*map(str, (script, *options))], log, environment))
    process.start()
    return process


def run_ranks(folder, *ranks, work=typed):
    """Run a script on several ranks; of each, how it ended and what it said, which is kept in the folder.

    ranks: of each, the name of the script's module and the options, or what `work` takes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(len(ranks))}
    logs = [folder / f"rank{k}.txt" for k in range(len(ranks))]
    started = [
        begin(*words, log=log, work=work, RANK=str(k), LOCAL_RANK=str(k), **shared)
        for k, (words, log) in enumerate(zip(ranks, logs))
    ]
    for process in started:
        process.join()
    return [(process.exitcode, log.read_text()) for process, log in zip(started, logs)]
