"""Runs of interpolate_video.py that end early, resume or meet: complete parts stay, and the result is the same."""

import _thread
import errno
import heapq
import os
import signal
import sys
import time
from contextlib import suppress
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import count
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tqdm
from conftest import files_up_to
from processes import begin, run_ranks
from video_files import (
    HEIGHT,
    WIDTH,
    as_typed,
    complaint,
    decode,
    encode,
    interrupted_after,
    moving,
    packets,
    run,
    start,
)

import interpolate_video
import models
from models import fast
from utils import io, parts, video_job, video_out
from utils.parts import Parts, begun


@pytest.fixture
def clip(tmp_path):
    return encode(tmp_path / "in.mp4", moving(20))


def long_clip(tmp_path):
    """Six seconds of ten frames."""
    return encode(tmp_path / "in.mp4", moving(10) * 6, rate=10, sound="aac")


def wait_for(path, process):
    until = time.monotonic() + 60
    while not path.exists():
        assert process.is_alive() and time.monotonic() < until
        time.sleep(0.002)


def test_a_killed_run_goes_on_and_ends_in_the_same_file(tmp_path):
    source = long_clip(tmp_path)
    run(source, tmp_path / "whole.mp4", "--segment", "1", model="dis")
    process = start(4, tmp_path / "on", source, tmp_path / "out.mp4", "--segment", "1", model="dis")
    wait_for(tmp_path / ".out.mp4.parts" / "000003.mp4", process)
    process.kill()
    process.join()
    assert not (tmp_path / "out.mp4").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.mp4.parts").glob("0*")}
    assert len(before) == 4
    with pytest.raises(ValueError, match="begun with factor default, not 4"):
        run(source, tmp_path / "out.mp4", "--segment", "1", "--resume", "--factor", "4", model="dis")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.mp4.parts").glob("0*")} == before
    run(source, tmp_path / "out.mp4", "--segment", "1", "--resume", model="dis")
    assert packets(tmp_path / "out.mp4", "video") == packets(tmp_path / "whole.mp4", "video")
    assert packets(tmp_path / "out.mp4", "audio") == packets(tmp_path / "whole.mp4", "audio")
    assert not (tmp_path / ".out.mp4.parts").exists()


def killed_while_joining(*words):
    def merge(packets, *_):
        yield next(packets)
        os.kill(os.getpid(), signal.SIGKILL)

    heapq.merge = merge
    as_typed(*words)


def test_a_run_that_was_killed_while_it_joined_its_parts_leaves_nothing_for_good(tmp_path, clip):
    process = begin(clip, tmp_path / "out.mp4", "--model_name", "average", work=killed_while_joining)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "out.mp4").exists()
    run(clip, tmp_path / "out.mp4", "--resume")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_an_interrupt_leaves_a_playable_file_and_can_be_resumed(tmp_path):
    source = long_clip(tmp_path)
    process = start(3.5, tmp_path / "on", source, tmp_path / "out.mp4", "--segment", "1")
    wait_for(tmp_path / ".out.mp4.parts" / "000002.mp4", process)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    errors = (tmp_path / "on.txt").read_text()
    assert process.exitcode == 2 and "--resume continues" in errors.splitlines()[-1] and "Traceback" not in errors
    times, _ = decode(tmp_path / "out.mp4")
    assert 60 <= len(times) < 119 and times == [Fraction(k, 20) for k in range(len(times))]
    sound = packets(tmp_path / "out.mp4", "audio")
    assert sound[-1][0] < times[-1] + 1
    run(source, tmp_path / "out.mp4", "--segment", "1", "--resume")
    run(source, tmp_path / "whole.mp4", "--segment", "1")
    assert packets(tmp_path / "out.mp4", "video") == packets(tmp_path / "whole.mp4", "video")


class Killed(BaseException):
    """What nothing catches, as a kill is."""


@pytest.mark.parametrize("again", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device", "a part")])
def test_what_an_interrupt_has_shown_never_passes_for_the_whole(tmp_path, monkeypatch, capsys, again):
    """Neither where the next run ends before its first part, nor where a kill comes as soon as it is shown."""
    source, join = encode(tmp_path / "in.mp4", moving(40)), video_job.join

    def killed(*args, **kwargs):
        join(*args, **kwargs)
        raise Killed

    for name, end in (("out.mp4", KeyboardInterrupt), ("killed.mp4", Killed)):
        out = tmp_path / name
        with monkeypatch.context() as during, pytest.raises(end):
            during.setattr(interpolate_video.Job, "write", failing(KeyboardInterrupt(), interpolate_video.Job.write, 9))
            during.setattr(video_job, "join", killed if end is Killed else join)
            run(source, out, "--segment", "1")
        for how in ("--resume", "--overwrite", "--resume"):
            with monkeypatch.context() as during, pytest.raises(type(again)) as told:
                during.setattr(interpolate_video.Job, "write", failing(again))
                run(source, out, "--segment", "1", how)
            assert "--resume continues" in str(told.value)
            assert "begun and is not finished; --resume continues" in complaint(capsys, source, out, "--segment", "1")
            assert len(decode(out)[0]) == 9
        run(source, out, "--segment", "1", "--resume")
        assert len(decode(out)[0]) == 79
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "killed.mp4", "out.mp4"]


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_parts_that_were_joined_are_not_made_again_where_their_removal_was_cut_short(tmp_path, monkeypatch, name):
    source, out = encode(tmp_path / "in.mp4", moving(20), 5), tmp_path / name
    join, remove = video_job.join, parts._remove
    for number in count():
        with monkeypatch.context() as during, suppress(Killed):

            def then_killed(*args, during=during, number=number):
                join(*args)
                during.setattr(parts, "_remove", failing(Killed(), remove, number))

            during.setattr(video_job, "join", then_killed)
            run(source, out, "--segment", "1", "--overwrite")
            break
        before = [path.read_bytes() for path in ([out] if out.is_file() else sorted(out.iterdir()))]
        with monkeypatch.context() as during:
            during.setattr(interpolate_video.Job, "write", failing(AssertionError("made again")))
            run(source, out, "--segment", "1", "--resume")
        assert [path.read_bytes() for path in ([out] if out.is_file() else sorted(out.iterdir()))] == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", name]
    assert number == 6  # four parts, settings and a mark


def interrupted_and_killed_while_joining(*words):
    Path.hardlink_to = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    interpolate_video.Job.write = failing(KeyboardInterrupt(), interpolate_video.Job.write, 9)
    as_typed(*words)


def test_pictures_that_a_kill_left_half_joined_are_not_left_by_the_run_after_it(tmp_path, clip, monkeypatch):
    process = begin(clip, tmp_path / "out", "--model_name", "average", work=interrupted_and_killed_while_joining)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(interpolate_video.Job, "write", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(clip, tmp_path / "out", "--resume")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_finished_video_gives_way_to_a_whole_one_alone(tmp_path, monkeypatch):
    source, out = encode(tmp_path / "in.mp4", moving(75)), tmp_path / "out.mp4"
    run(source, out, "--factor", "1")
    old = out.read_bytes()
    line = interrupted_after(1.5, monkeypatch, source, out, "--overwrite")
    assert "is in" in line and "--resume continues" in line and out.read_bytes() == old
    run(source, out, "--segment", "1", "--resume")
    assert len(decode(out)[0]) == 149


def test_two_runs_of_one_output_do_not_meet(tmp_path):
    source = long_clip(tmp_path)
    process = start(2, tmp_path / "on", source, tmp_path / "out.mp4", "--segment", "1")
    wait_for(tmp_path / ".out.mp4.parts" / "000001.mp4", process)
    for how in ("--overwrite", "--resume"):
        with pytest.raises(ValueError, match="out.mp4.parts: another run is at work here; wait for its end"):
            run(source, tmp_path / "out.mp4", "--segment", "1", how)
    assert process.is_alive(), (tmp_path / "on.txt").read_text()
    (tmp_path / "on").touch()
    process.join(120)
    assert process.exitcode == 0 and len(decode(tmp_path / "out.mp4")[0]) == 119


def test_a_run_does_not_go_on_with_other_weights_of_the_same_name(tmp_path, monkeypatch):
    source, out, path = encode(tmp_path / "in.mp4", moving(60)), tmp_path / "out.mp4", tmp_path / "weights.pth"
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(models.build("IFRNet_S").state_dict(), path)
        words = ("--segment", "1", "--checkpoint", str(path), "--scale", "0.25")
        if seed == 0:
            interrupted_after(1.5, monkeypatch, source, out, *words[2:], model="IFRNet_S")
    with pytest.raises(ValueError, match="was begun with weights"):
        run(source, out, *words, "--resume", model="IFRNet_S")


def test_a_run_does_not_go_on_with_another_method_in_the_same_file(tmp_path, monkeypatch):
    source, out, path = encode(tmp_path / "in.mp4", moving(60)), tmp_path / "out.mp4", tmp_path / "method.py"
    path.write_text("def interpolate(img0, img1):\n    return img0\n")
    interrupted_after(1.5, monkeypatch, source, out, model=str(path))
    path.write_text("def interpolate(img0, img1):\n    return img1\n")
    with pytest.raises(ValueError, match="was begun with code"):
        run(source, out, "--segment", "1", "--resume", model=str(path))


def test_an_interrupt_while_a_frame_is_encoded_does_not_lose_it(tmp_path, monkeypatch):
    """Later frames may refer to it."""
    form = video_out.Format(WIDTH, HEIGHT, Fraction(25), Fraction(1, 25), codec="ffv1")
    writer, convert = video_out.VideoWriter(tmp_path / "a.mkv", form), video_out.VideoWriter._converted
    stream = writer.stream

    def interrupted(*args):
        frame = convert(*args)
        # One call from Python, during which nothing is raised: the interrupt comes first, and the packets are returned.
        calls = map(methodcaller("__call__"), [_thread.interrupt_main, partial(stream.encode, frame)])
        writer.stream = SimpleNamespace(encode=partial(next, filter(None, calls)))
        return frame

    writer.write(moving(2)[0], Fraction(0))
    monkeypatch.setattr(video_out.VideoWriter, "_converted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.write(moving(2)[1], Fraction(1, 25))
    writer.stream = stream
    writer.close()
    assert len(decode(tmp_path / "a.mkv")[1]) == 2


def test_an_interrupt_behind_a_gap_in_time_leaves_and_resumes_all_that_is_done(tmp_path, monkeypatch):
    """From 9/25 s to 17/5 s one frame is shown: there is nothing for the seconds 1 and 2."""
    times = [Fraction(i, 25) for i in (*range(10), *range(85, 125))]
    source = encode(tmp_path / "in.mp4", moving(50), times=times)
    out = tmp_path / "out.mp4"
    run(source, tmp_path / "whole.mp4", "--segment", "1")
    assert "--resume continues" in interrupted_after(Fraction(9, 2), monkeypatch, source, out)
    assert decode(out)[0] == [time for time in decode(tmp_path / "whole.mp4")[0] if time <= Fraction(9, 2)]
    assert Parts(out, ".mp4", {}).missing(0, 5) == [range(4, 5)]
    run(source, out, "--segment", "1", "--resume")
    assert packets(out, "video") == packets(tmp_path / "whole.mp4", "video")


@pytest.mark.parametrize("options", [(), ("--fps", "60", "--dedup")])
def test_two_ranks_make_the_file_of_one(tmp_path, options):
    source = encode(tmp_path / "in.mp4", moving(70), sound="aac")
    run(source, tmp_path / "one.mp4", "--segment", "1", *options)
    words = [source, tmp_path / "two.mp4", "--segment", "1", "--model_name", "average", *options]
    (status, said), (other, others) = run_ranks(tmp_path, *[("interpolate_video", *words)] * 2)
    assert status == other == 0, said + others
    assert packets(tmp_path / "two.mp4", "video") == packets(tmp_path / "one.mp4", "video")
    assert packets(tmp_path / "two.mp4", "audio") == packets(source, "audio")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_stop_ends_a_run_like_an_interrupt(tmp_path, kind):
    source = encode(tmp_path / "in.mp4", moving(100))
    process = start(2.5, tmp_path / "on", source, tmp_path / "out.mp4", "--segment", "1")
    wait_for(tmp_path / ".out.mp4.parts" / "000001.mp4", process)
    os.kill(process.pid, kind)
    process.join(60)
    assert process.exitcode == 2 and "--resume continues" in (tmp_path / "on.txt").read_text()
    assert len(decode(tmp_path / "out.mp4")[0]) >= 100


def on_a_full_disk(*words):
    with files_up_to(2**18):
        as_typed(*words)


def test_a_full_disk_is_one_line_and_what_is_complete_stays(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 128, 3), np.uint8)
    source = encode(tmp_path / "in.mp4", list(noise), preset="ultrafast", crf="30")
    words = [source, tmp_path / "out.mp4", "--crf", "0", "--cuts", "no", "--segment", "1", "--model_name", "average"]
    process = begin(*words, work=on_a_full_disk, log=tmp_path / "said.txt")
    process.join(60)
    errors = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 2 and "File too large" in errors.splitlines()[-1] and "Traceback" not in errors, errors
    assert not (tmp_path / "out.mp4").exists()


def test_a_disk_that_is_full_when_parts_are_joined_leaves_them_to_be_joined(tmp_path, clip, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device", "out.mp4")
    with monkeypatch.context() as during, pytest.raises(OSError, match="No space left .* and --resume joins them"):
        during.setattr(interpolate_video.video_join, "join_videos", failing(full))
        run(clip, tmp_path / "out.mp4")
    monkeypatch.setattr(interpolate_video.Job, "write", None)  # nothing is made anew
    run(clip, tmp_path / "out.mp4", "--resume")
    assert len(decode(tmp_path / "out.mp4")[0]) == 39


def failing(error, function=None, after=0):
    """The function, which fails after so many calls."""
    calls = count()

    def call(*args, **kwargs):
        if next(calls) >= after:
            raise error
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("piped", [False, True])
def test_what_ends_in_the_work_or_in_the_joining_promises_no_more_than_can_be(tmp_path, monkeypatch, piped):
    """A pipe, which can be read only once, is not gone on with."""
    source, out, pipe = encode(tmp_path / "in.mp4", moving(40)), tmp_path / "out.mp4", BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
    run(source, "-", "--factor", "1")

    def go(*words):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(pipe.getvalue())))
        run("-" if piped else source, out, "--segment", "1", *words)

    full, job = OSError(errno.ENOSPC, "No space left on device", "a part"), interpolate_video.Job
    for place, name, fails, kept, ways in (
        (job, "write", failing(full, job.write, 60), "what is done is in ", ", and --resume continues"),
        (interpolate_video.video_join, "join_videos", failing(full), "all parts are in ", ", and --resume joins them"),
        (interpolate_video.video_join, "join_videos", failing(KeyboardInterrupt()), "interrupted; all parts", ", and"),
    ):
        with monkeypatch.context() as during, pytest.raises((OSError, KeyboardInterrupt)) as told:
            during.setattr(place, name, fails)
            go("--overwrite")
        assert kept in str(told.value) and (ways in str(told.value)) == (not piped) and begun(out)
    if piped:
        with pytest.raises(ValueError, match="standard input: can be read only once, in order; --resume and torchrun"):
            go("--resume")
    go("--overwrite" if piped else "--resume")
    assert len(decode(out)[0]) == 79


def test_ctrl_c_leaves_of_a_pipe_what_is_done_and_nothing_beside_it(tmp_path, monkeypatch):
    source, pipe = encode(tmp_path / "in.mp4", moving(40)), BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
    run(source, "-", "--factor", "1")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(pipe.getvalue())))
    said = interrupted_after(Fraction(5, 4), monkeypatch, "-", tmp_path / "out.mp4")
    assert said == f"interrupted; {tmp_path / 'out.mp4'} holds what is done"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    times, images = decode(tmp_path / "out.mp4")
    assert times == [Fraction(k, 50) for k in range(63)]
    assert np.abs(images[-1].astype(int) - decode(source)[1][31]).mean() < 8


def test_a_folder_is_the_same_input_as_long_as_its_pictures_are(tmp_path, monkeypatch):
    """Also where the output is written into it."""
    folder = tmp_path / "in"
    for number, image in enumerate(moving(60)):
        io.write_image(folder / f"{number}.png", image)
    interrupted_after(1, monkeypatch, folder, folder / "out.mp4")
    run(folder, folder / "out.mp4", "--segment", "1", "--resume")
    assert len(decode(folder / "out.mp4")[0]) == 119
    interrupted_after(1, monkeypatch, folder, tmp_path / "out.mp4")
    io.write_image(folder / "50.png", moving(1, seed=1)[0])
    with pytest.raises(ValueError, match="begun with the input's state"):
        run(folder, tmp_path / "out.mp4", "--segment", "1", "--resume")


def test_the_option_that_is_another_is_named_rather_than_what_follows_from_it(tmp_path, clip, monkeypatch):
    interrupted_after(0.5, monkeypatch, clip, tmp_path / "out.mp4", model="IFRNet_S")
    with pytest.raises(ValueError, match="begun with model_name IFRNet_S, not average; keep it"):
        run(clip, tmp_path / "out.mp4", "--segment", "1", "--resume")


def test_a_name_as_long_as_a_disk_takes_can_be_finished(tmp_path, clip):
    out = tmp_path / ("é" * 121 + ".mp4")
    run(clip, out)
    assert len(decode(out)[0]) == 39


def test_what_a_killed_run_has_done_is_not_thrown_away_unasked(tmp_path, clip, capsys):
    part = tmp_path / ".out.mp4.parts" / "000000.mp4"
    part.parent.mkdir()
    part.write_text("hours of work")
    assert "--resume continues" in complaint(capsys, clip, tmp_path / "out.mp4")
    (tmp_path / "out.mp4").write_text("what was done until Ctrl-C")
    assert "--resume continues" in complaint(capsys, clip, tmp_path / "out.mp4")
    assert part.exists()
    run(clip, tmp_path / "out.mp4", "--overwrite")
    assert len(decode(tmp_path / "out.mp4")[0]) == 39 and not part.exists()


def test_what_a_killed_run_has_done_for_an_empty_folder_is_not_thrown_away_either(tmp_path, clip, capsys):
    part = tmp_path / ".out.parts" / "000000"
    for folder in (part, tmp_path / "out"):
        folder.mkdir(parents=True)
    assert "--resume continues" in complaint(capsys, clip, tmp_path / "out")
    assert part.exists()
    run(clip, tmp_path / "out", "--overwrite")
    assert len(list((tmp_path / "out").iterdir())) == 39 and not part.exists()


def test_a_run_is_gone_on_with_in_the_mode_that_it_was_begun_in(tmp_path, monkeypatch, capsys):
    source, out = encode(tmp_path / "in.mp4", moving(60)), tmp_path / "out.mp4"
    interrupted_after(1, monkeypatch, source, out, "--no_fast", model="IFRNet_S")
    line = complaint(capsys, source, out, "--segment", "1", "--resume", "--fast", model="IFRNet_S")
    assert "was begun with fast no, not yes" in line
    monkeypatch.setattr(fast, "PAYS", 1e15)
    run(source, out, "--segment", "1", "--resume", model="IFRNet_S")  # fast mode is not worth its start here
    assert len(decode(out)[0]) == 119


def test_an_interrupt_before_anything_is_done_leaves_nothing(tmp_path, clip, capsys, monkeypatch):
    monkeypatch.setattr(interpolate_video.Job, "write", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(clip, tmp_path / "out.mp4")
    assert not list(tmp_path.glob("*out*"))


def test_an_interrupt_at_the_first_line_is_an_interrupt(tmp_path, monkeypatch, capsys):
    """The progress bar makes itself a lock at first, and if that is cut short has none to let go of."""
    source = encode(tmp_path / "in.mp4", moving(3), pix_fmt="yuv444p")  # of which there is something to say
    monkeypatch.delattr(tqdm.std.tqdm, "_lock", raising=False)
    monkeypatch.setattr(tqdm.std, "TqdmDefaultWriteLock", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt, match="^interrupted$"):
        run(source, tmp_path / "out.mp4")
    assert "reduced to 4:2:0" in capsys.readouterr().err and not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("shown", [0, 1])
def test_an_interrupt_while_a_picture_is_written_shows_those_before_it(tmp_path, clip, monkeypatch, shown):
    monkeypatch.setattr(io, "write_bytes", failing(KeyboardInterrupt(), io.write_bytes, 1 + shown))  # settings first
    with pytest.raises(KeyboardInterrupt, match="--resume continues" if shown else "^interrupted$"):
        run(clip, tmp_path / "out")
    assert len(list(tmp_path.glob("out/*.png"))) == shown and bool(list(tmp_path.glob("*out*"))) == bool(shown)
