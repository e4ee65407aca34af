"""The log of a run and the numbers of its curves: kept through full disks and resumes."""

import errno
import io
import itertools
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from conftest import ROOT, files_up_to
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import rows

from utils.journal import Journal


def test_a_record_that_cannot_be_written_costs_a_line_and_not_the_run(tmp_path, capsys):
    journal = Journal(tmp_path)
    for name in ("train.log", "metrics.csv"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
    for iteration in (1, 2):
        journal.say(f"line {iteration}")
        journal.numbers(iteration, {"loss": 1.0})
    journal.close()
    said = capsys.readouterr().out
    assert "line 1" in said and "line 2" in said and said.count("can be written to the log") == 1


def test_a_screen_that_cannot_be_written_to_costs_no_line_of_the_log(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path)
    monkeypatch.setattr(sys, "stdout", Full())
    for iteration in (1, 2):
        journal.say(f"line {iteration}")
    journal.close()
    assert [line[-6:] for line in (tmp_path / "train.log").read_text().splitlines()] == ["line 1", "line 2"]


@pytest.mark.skipif(not sys.prefix.isascii(), reason="PyTorch itself cannot be imported from there in this locale")
def test_a_name_in_any_script_is_logged_whatever_the_locale(tmp_path):
    code = "import sys; from utils.journal import Journal; Journal(sys.argv[1]).say('\\u65e5.pth')"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code, tmp_path]
    assert subprocess.run(command, cwd=ROOT, env=os.environ | plain, capture_output=True).returncode == 0
    assert (tmp_path / "train.log").read_text("utf-8").endswith(" \u65e5.pth\n")


def test_a_run_gone_on_with_at_its_beginning_keeps_what_was_recorded_there(tmp_path):
    journal = Journal(tmp_path)
    for iteration in (0, 1):
        journal.numbers(iteration, {"psnr": 2.0})
    journal.close()
    Journal(tmp_path, start=0).close()
    assert [row["iteration"] for row in rows(tmp_path)] == ["0"]
    Journal(tmp_path).close()
    assert not rows(tmp_path)


@pytest.fixture
def seconds_pass(monkeypatch):
    """The seconds in the names of TensorBoard's files tell their order."""
    monkeypatch.setattr(time, "time", map(float, itertools.count(10**9)).__next__)


def test_a_disk_that_is_full_for_a_while_costs_curves_that_while_alone(tmp_path, capfd, seconds_pass):
    journal = Journal(tmp_path)
    journal.numbers(1, {"loss": 1.0})
    journal.board.flush()
    (events,) = tmp_path.glob("events*")
    with files_up_to(events.stat().st_size + 10):
        journal.numbers(2, {"loss": 1.0})
        with suppress(OSError):
            journal.board.flush()
    for iteration in (3, 4, 5):
        journal.numbers(iteration, {"loss": 1.0})
    journal.close()
    said = "".join(capfd.readouterr())
    assert said.count("\n") == said.count("not everything printed here can be written to the log") == 1
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [point.step for point in points] == [1, 4, 5]  # a thread wrote the second, and the third told of it


def test_a_disk_that_is_full_from_the_beginning_is_named(tmp_path, capfd):
    with files_up_to(0), pytest.raises(OSError, match=f"File too large: '{tmp_path}'"):
        Journal(tmp_path)
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("tensorboard"):
            thread.join()
    assert not "".join(capfd.readouterr())


def test_curves_hold_nothing_of_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, seconds_pass):
    for lost in (1.0, 2.0):  # the second run begins anew
        journal = Journal(tmp_path)
        for iteration in (0, 1, 2):
            journal.numbers(iteration, {"loss": lost})
        journal.close()
    found = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(point.step, point.value) for point in found] == [(0, 2), (1, 2), (2, 2)]
    assert [(row["iteration"], row["loss"]) for row in rows(tmp_path)] == [("0", "2"), ("1", "2"), ("2", "2")]


def test_a_validation_that_a_killed_run_recorded_is_not_recorded_twice(tmp_path, seconds_pass):
    """Its checkpoint was saved before it, and a resumed run validates again."""
    first = Journal(tmp_path)
    first.numbers(5, {"loss": 1.0})
    first.numbers(5, {"psnr": 30.0})  # and then it was killed
    again = Journal(tmp_path, start=5)
    again.numbers(5, {"psnr": 30.0})
    again.numbers(6, {"psnr": 30.0})
    for journal in (again, first):
        journal.close()
    assert [(row["iteration"], row["psnr"]) for row in rows(tmp_path)] == [("5", ""), ("5", "30"), ("6", "30")]
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("psnr")
    assert [point.step for point in points] == [5, 6]


def test_a_line_that_a_full_disk_cut_costs_that_line_alone(tmp_path):
    journal = Journal(tmp_path)
    for iteration in (1, 2):
        journal.numbers(iteration, {"loss": 1.0, "psnr": 2.0})
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("3,1")  # and then there was room again
    journal.numbers(4, {"loss": 1.0, "psnr": 2.0})
    journal.numbers(5, {"loss": 1.0, "psnr": 2.0})
    journal.close()
    Journal(tmp_path, start=5).close()
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "2", "5"]


def test_numbers_that_a_kill_left_half_written_are_not_left_by_the_run_after_it(tmp_path):
    (tmp_path / ".metrics.here.7.csv").write_text("iter")
    Journal(tmp_path).close()
    assert not list(tmp_path.glob(".*"))
