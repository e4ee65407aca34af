"""The command line that scripts share: what is refused before anything is done, and how a warning looks."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT

import demo_2x
import interpolate_video
from benchmarks import common, video
from models.baselines import BASELINES
from utils import cli, distributed, io

SCRIPTS = {
    "a demo": (demo_2x.parser, [""], []),
    "a video": (interpolate_video.parser, [], ["in.mp4", "out.mp4"]),
    "a benchmark": (common.parser, [""], []),
    "a benchmark of videos": (video.parser, [], []),
}
SCRIPT = """
import sys, warnings
sys.path.insert(0, {root!r})
from utils import cli

def main(args):
    warnings.warn("clips: left out,\\nsmaller than 32x32: a.mp4")
    print(warnings.formatwarning is usual)

usual = warnings.formatwarning
cli.run(main, cli.Parser("A script."))
print(warnings.formatwarning is usual)
"""


def takes(parser, option):
    return any(option in action.option_strings for action in parser._actions)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("option", ["--scale auto", "--scale=1", "--tile none", "--precision fp32", "--fast"])
def test_an_option_of_networks_is_refused_where_there_is_none(script, option, capsys):
    make, given, words = SCRIPTS[script]
    parser, name = make(*given), option.replace("=", " ").split()[0]
    if not takes(parser, name):
        pytest.skip(f"no {name} here")
    for baseline in BASELINES:
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([*words, "--model-name", baseline, *option.split()])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        assert f"{name} has no effect on {baseline}; leave it out, or name a network" in error
        parser.parse_args([*words, "--model_name", baseline])
    for network in ([], ["--model_name", "IFRNet_S"]):
        parser.parse_args([*words, *network, *option.split()])


@pytest.mark.parametrize(
    "typed, meant", [("--factr", "--factor"), ("--model-nam=dis", "--model_name"), ("--qqq", None), ("factor", None)]
)
def test_an_option_typed_almost_right_is_answered_with_the_one_that_may_be_meant(typed, meant, capsys):
    with pytest.raises(SystemExit) as stopped:
        interpolate_video.parser().parse_args(["in.mp4", "out.mp4", typed])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.splitlines()) == 1
    assert f"; did you mean {meant}?" in said if meant else f"unrecognized arguments: {typed}" in said


def test_names_behind_two_hyphens_are_taken_as_they_are():
    parser = cli.Parser("")
    parser.add_argument("--some_option")
    parser.add_argument("name")
    assert parser.parse_args(["--some-option", "a-b", "--", "--my-clip.mp4"]).name == "--my-clip.mp4"


def test_of_several_models_one_network_is_enough(capsys):
    parser = common.parser("")
    assert parser.parse_args(["--model_name", "dis", "IFRNet_S", "--scale", "0.5", "--fast"]).scale == 0.5
    with pytest.raises(SystemExit):
        parser.parse_args(["--model_name", "dis", "average", "--scale", "0.5"])
    assert "--scale has no effect on dis, average" in capsys.readouterr().err
    assert video.network(video.parser().parse_args(["--model_name", "IFRNet_S", "dis", "--fast"])) == ("IFRNet_S", None)


def test_each_file_of_weights_is_a_model_beside_the_baselines():
    parse = common.parser("").parse_args
    words = ["--model_name", "dis", "average", "--checkpoint", "a.pth", "b.pth", "a.pth", "--scale", "0.5"]
    assert cli.asked(parse(words)) == [("dis", None), ("average", None), (None, "a.pth"), (None, "b.pth")]
    assert cli.asked(parse(["--model_name", "IFRNet", "--checkpoint", "a.pth"])) == [("IFRNet", "a.pth")]
    assert cli.asked(parse(["--checkpoint", "a.pth", "IFRNet"])) == [(None, "a.pth"), (None, "IFRNet")]


@pytest.mark.parametrize("debug", ["0", "1"])
def test_a_warning_is_one_plain_line_but_for_who_looks_for_its_place(debug, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, script], env={"VFI_DEBUG": debug}, capture_output=True, text=True)
    assert done.returncode == 0
    if debug == "1":
        assert "script.py:7: UserWarning" in done.stderr and done.stdout == "True\nTrue\n"
    else:
        assert done.stderr == "clips: left out, smaller than 32x32: a.mp4\n" and done.stdout == "False\nTrue\n"


@pytest.mark.parametrize("library", [np, torch])
def test_more_memory_than_there_is_is_one_line(typed, library):
    done = typed(lambda _: library.empty(2**50), cli.Parser(""))
    assert (done.status, done.err) == (2, "script.py: the memory is full; use a smaller batch, size or scale\n")


@pytest.mark.parametrize(
    "error, line",
    [
        (
            torch.cuda.OutOfMemoryError(),
            "the GPU's memory is full; use a smaller batch, size or scale, or --device cpu",
        ),
        (RuntimeError("DataLoader worker (pid 1) was killed. Then"), "DataLoader worker (pid 1) was killed; if memory"),
        (RuntimeError("a fault of ours"), None),
        (OSError(28, "No space left", "a.png"), "a.png: No space left"),
        (OSError(27, "Too large", "a.png"), "a.png: Too large; the disk or ulimit -f allows no larger files"),
        (ValueError("no\nnumber"), "no number"),
    ],
)
def test_what_a_user_can_cause_is_one_line_but_for_who_looks_for_its_place(typed, monkeypatch, error, line):
    def main(_):
        raise error

    for debug in ("0", "1"):
        monkeypatch.setenv("VFI_DEBUG", debug)
        if line and (debug == "0" or isinstance(error, torch.cuda.OutOfMemoryError)):
            done = typed(main, cli.Parser(""))
            assert (done.status, done.err.count("\n")) == (2, 1) and done.err.startswith(f"script.py: {line}")
        else:
            with pytest.raises(type(error)) as raised:
                typed(main, cli.Parser(""))
            assert raised.value is error


def test_a_script_for_one_process_is_refused_where_torchrun_starts_several(typed, monkeypatch):
    several, done = cli.Parser(""), []
    distributed.add_options(several)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert typed(done.append, cli.Parser("")) == (2, "", "script.py: runs in one process; start it without torchrun\n")
    assert not done and typed(done.append, several).status == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert typed(done.append, cli.Parser("")).status == 0 and len(done) == 2


def test_a_name_that_the_output_cannot_hold_is_printed_and_ends_nothing(tmp_path):
    script = tmp_path / "script.py"
    lines = ["import sys", f"sys.path.insert(0, {str(ROOT)!r})", "from utils import cli"]
    lines.append(r'cli.run(lambda args: print("wrote \xe9\u65e5.png"), cli.Parser("A script."))')
    script.write_text("\n".join(lines))
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}  # that of a file or pipe on many a Windows
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True)
    assert done.returncode == 0 and done.stdout.strip() == b"wrote \xe9\\u65e5.png"


@pytest.fixture
def heard(kind):
    """The signal is not ignored, as SIGHUP is by tests that nohup started."""
    before = signal.signal(kind, signal.SIG_DFL)
    yield
    signal.signal(kind, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("kind", cli.STOPPING)
def test_a_signal_is_an_interrupt_and_one_that_follows_at_once_does_not_disturb_what_tidies_up(
    typed, tmp_path, monkeypatch, kind
):
    before = [signal.getsignal(each) for each in cli.STOPPING]

    def main(_):
        with io.replacing(tmp_path / "picture.png") as temporary:
            temporary.touch()
            try:
                os.kill(os.getpid(), kind)
            finally:
                os.kill(os.getpid(), kind)  # as launchers do

    done = typed(main, cli.Parser(""))
    assert (done.status, done.err) == (2, "script.py: interrupted\n") and not list(tmp_path.iterdir())
    assert [signal.getsignal(each) for each in cli.STOPPING] == before
    monkeypatch.setattr(cli, "IMPATIENT", -1)

    def stuck(_):
        try:
            os.kill(os.getpid(), kind)
        finally:
            os.kill(os.getpid(), kind)
            raise AssertionError("the second signal, which comes later, ends this")

    assert typed(stuck, cli.Parser("")).status == 2


def test_an_interrupt_that_is_ignored_in_the_background_stays_so(typed):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert typed(lambda _: os.kill(os.getpid(), signal.SIGINT), cli.Parser("")).status == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "end, status, said", [("raise KeyboardInterrupt", 2, "ending.py: interrupted\n"), ("pass", 0, "")]
)
def test_an_interrupt_while_python_ends_prints_no_traceback(tmp_path, end, status, said):
    script = tmp_path / "ending.py"
    lines = ["import atexit, os, signal, sys", f"sys.path.insert(0, {str(ROOT)!r})", "from utils import cli"]
    lines += ["signal.signal(signal.SIGINT, signal.default_int_handler)"]
    lines += ["atexit.register(os.kill, os.getpid(), signal.SIGINT)", "def main(_):", f"    {end}"]
    script.write_text("\n".join([*lines, 'cli.run(main, cli.Parser("A script."))']))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, said)


def test_what_must_not_be_disturbed_is_interrupted_at_its_end(typed, monkeypatch):
    reached = []

    def main(_):
        for patience in (cli.IMPATIENT, -1):
            monkeypatch.setattr(cli, "IMPATIENT", patience)
            try:
                with cli.undisturbed():
                    for number in range(2):
                        os.kill(os.getpid(), signal.SIGTERM)
                        reached.append(number)
            except KeyboardInterrupt:
                reached.append("interrupted")

    assert typed(main, cli.Parser("")).status == 0
    assert reached == [0, 1, "interrupted", 0, "interrupted"]


def test_one_that_follows_at_once_does_not_disturb_what_tidies_up_after_an_impatient_one_either(typed, monkeypatch):
    tidied = []

    def main(_):
        monkeypatch.setattr(cli, "IMPATIENT", 0.5)
        with cli.undisturbed():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.6)
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # as launchers do
                tidied.append(True)

    assert typed(main, cli.Parser("")).status == 2 and tidied


def test_one_that_follows_at_once_does_not_disturb_what_tidies_up_undisturbed(typed):
    tidied = []

    def main(_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            with cli.undisturbed():  # as a generator's destructor does, which can raise nothing
                os.kill(os.getpid(), signal.SIGTERM)
            tidied.append(True)

    assert typed(main, cli.Parser("")).status == 2 and tidied
