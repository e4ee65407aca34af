"""When frames of a video are shown: cuts that are not bridged, repeats and pauses, and the times of the output."""

import itertools
import re
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
from av.filter import Graph
from video_files import decode, encode, moving, run

from models.baselines import Average
from utils import io, shots, timeline, video
from utils.timeline import Frame, Grid

# Cuts and repeats


def test_nothing_is_invented_across_a_cut(tmp_path):
    frames = moving(6, seed=1) + moving(6, seed=2)
    run(encode(tmp_path / "in.mp4", frames), tmp_path / "out.mp4", "--factor", "4", "--codec", "ffv1")
    _, images = decode(tmp_path / "out.mp4")
    assert len(images) == 45
    assert all((images[20 + k] == images[20]).all() for k in range(4))  # the last frame before the cut, repeated
    assert not (images[17] == images[16]).all() and not (images[25] == images[24]).all()
    run(tmp_path / "in.mp4", tmp_path / "no.mp4", "--factor", "4", "--codec", "ffv1", "--cuts", "no")
    assert not (decode(tmp_path / "no.mp4")[1][21] == images[20]).all()


def test_cuts_between_real_clips_are_found_and_motion_is_not_taken_for_one(real_data):
    """carphone and dogs-jump: little motion; bmx-trees, running_car: much, up to 69 pixels in 972."""
    names = ("carphone.mp4", "davis_dogs-jump.mp4", "davis_bmx-trees", "propainter_running_car.mp4", "pysot_bag.avi")
    clips = []
    for name in names:
        frames = video.open_source(str(real_data / "clips" / name)).frames()
        clips.append([shots.thumbnail(frame.image) for _, frame in zip(range(50), frames)])
    for thumbnails in clips:
        assert max(map(shots.unexplained, thumbnails, thumbnails[1:])) < shots.CUT
    joints = [(a[i], b[-1 - i]) for a in clips for b in clips if a is not b for i in (0, 20, 40)]
    assert min(shots.unexplained(a, b) for a, b in joints) > shots.CUT


def test_repeated_frames_are_dropped_and_their_times_filled_with_motion(tmp_path):
    """12 frames a second shown as 24: without the repeats the average lies half-way at every second time."""
    frames = moving(5, step=4)
    for i in range(10):
        io.write_image(tmp_path / "frames" / f"{i}.png", frames[i // 2])
    run(tmp_path / "frames", tmp_path / "out", "--factor", "1", "--dedup")
    images = [io.read_image(path).astype(float) for path in io.list_images(tmp_path / "out")]
    assert len(images) == 10 and all((a == b).all() for a, b in zip(images[::2], frames))
    for before, made, after in zip(images[::2], images[1::2], images[2::2]):
        assert np.abs(made - (before + after) / 2).max() <= 0.51


def test_a_picture_that_stands_still_is_not_stretched_into_motion():
    still = [Frame(Fraction(i), np.zeros((64, 64, 3), np.uint8)) for i in range(10)]
    moved = Frame(Fraction(10), np.full((64, 64, 3), 50, np.uint8))
    pairs = list(timeline.steps([*still, moved], Grid(2), Fraction(100), cut=None, repeat=shots.is_repeat))
    spans = [(int(step.first.time), int(step.second.time)) for step in pairs]
    assert spans == [(0, 4), *((k, k + 1) for k in range(4, 10)), (10, 10)]


def test_between_equal_frames_the_network_has_nothing_to_do(tmp_path, monkeypatch):
    """A recording of a screen that stands still, or animation on twos: half of the work, and no flicker."""
    asked, each = [], Average.each
    monkeypatch.setattr(Average, "each", lambda self, *args: asked.append(args) or each(self, *args))
    frames = [frame for frame in moving(3) for _ in range(2)]
    run(encode(tmp_path / "in.mkv", frames, codec="ffv1"), tmp_path / "out.mkv", "--codec", "ffv1")
    _, images = decode(tmp_path / "out.mkv")
    assert len(images) == 11 and len(asked) == 2
    assert all((images[4 * k + step] == images[4 * k]).all() for k in range(3) for step in (1, 2))


@pytest.mark.parametrize("options", [("--fps", "100"), ("--factor", "4"), ("--slow", "2"), ("--dedup",)])
def test_a_picture_stands_still_while_a_recorder_stores_no_other(tmp_path, options):
    """As in the same recording with a frame stored 25 times a second, motion begins with the last of these frames."""
    frames = moving(20)
    times = [Fraction(k if k < 10 else k + 75, 25) for k in range(20)]
    source = encode(tmp_path / "in.mkv", frames, times=times, codec="ffv1", pix_fmt="bgr0")
    run(source, tmp_path / "out.mkv", "--codec", "ffv1", *options)
    slow = 2 if "--slow" in options else 1
    shown = [(time / slow, image) for time, image in zip(*decode(tmp_path / "out.mkv"))]
    still = [image for time, image in shown if times[9] <= time <= times[10] - Fraction(1, 25)]
    assert still and all((image == frames[9]).all() for image in still)
    begun = [image for time, image in shown if times[10] - Fraction(1, 25) < time < times[10]]
    assert len(begun) == (3 if "--fps" in options else 0) and not any((x == frames[9]).all() for x in begun)
    between = [image for time, image in shown if times[7] < time < times[8]]
    assert between and not any((image == frames[7]).all() for image in between)


@pytest.mark.parametrize("rate", [1, 5, 25])
def test_frames_that_come_seldom_or_a_little_late_are_no_pause(rate):
    """Time-lapse; up to three lost frames; frames that --dedup drops."""
    frames = [Frame(Fraction(k, rate), image) for k, image in zip((0, 1, 2, 6, 7, 8, 9), moving(7))]
    pairs = list(timeline.steps(frames, Grid(2), Fraction(100), cut=None, usual=Fraction(1, rate)))
    assert [step.ts for step in pairs[:-1]] == [[0, Fraction(1, 2)]] * 6


def held(path, count, shown):
    """A video without loss, of which frames are repeated: each is shown as many times as `shown` says by turns."""
    times = itertools.cycle(shown)
    return encode(path, [image for image in moving(count, step=4) for _ in range(next(times))], codec="ffv1")


@pytest.mark.parametrize(
    ("shown", "told"),
    [((2,), True), ((3,), True), ((1, 2, 2, 1, 3), True), ((1,) * 9 + (2,), False), ((12, 1, 1), False), ((1,), False)],
)
def test_motion_that_pauses_often_is_told_of(tmp_path, capsys, shown, told):
    """On twos, on threes, with repeats at random; not a few lost frames, nor a picture that stands still."""
    held(tmp_path / "in.mkv", 40, shown)
    for options in ((), ("--dedup",)):
        run(tmp_path / "in.mkv", tmp_path / "out.mp4", "--overwrite", *options)
        assert ("in.mkv: motion often pauses" in capsys.readouterr().err) == (told and not options)


@pytest.mark.parametrize(
    ("shown", "what"),
    [
        ((1, 1, 1, 2), "of every 5 frames 1 repeats"),
        ((1, 1, 1, 1, 2), "of every 6 frames 1 repeats"),
        ((3, 2), "of every 5 frames 3 repeat"),
    ],
)
def test_repeats_that_come_regularly_are_told_with_the_filters_that_make_motion_even(tmp_path, capsys, shown, what):
    """24 and 25 frames a second stored as 30, and 24 as 60. FFmpeg leaves each frame once, all equally far apart."""
    source = held(tmp_path / "in.mkv", 60, shown)
    for options in ((), ("--dedup",)):
        run(source, tmp_path / "out.mp4", "--overwrite", *options)
        told = capsys.readouterr().err
        assert f"in.mkv: {what} the one before" in told and "motion often pauses" not in told
    graph, found = Graph(), []
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        nodes = [graph.add_buffer(template=stream), graph.add("fps", "25")]  # a buffer does not tell the rate
        nodes += [graph.add(*text.split("=")) for text in re.search("-vf (.*) OUT", told)[1].split(",")]
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        for frame in (*container.decode(stream), None):
            graph.push(frame)
            with suppress(EOFError, av.error.BlockingIOError):
                while True:
                    found.append(graph.pull())
    images = [frame.to_ndarray(format="rgb24") for frame in found]
    stored, begin = decode(source)[1], np.cumsum([0, *shown * 60])[:60]
    assert len(images) == 60 and all(np.array_equal(image, stored[k]) for image, k in zip(images, begin))
    assert len({b.pts - a.pts for a, b in itertools.pairwise(found)}) == 1


@pytest.mark.parametrize("hidden", [0, 0.3])
@pytest.mark.parametrize(
    ("shown", "cadence"),
    [((1, 1, 1, 2), (1, 5)), ((1, 1, 1, 1, 2), (1, 6)), ((3, 2), (3, 5))]
    + [(shown, None) for shown in ((2,), (3,), (1, 2), (2, 2, 1), (2, 2, 3, 2, 3), (1, 2, 2, 1, 3))],
    ids=str,
)
def test_repeats_that_compression_hides_leave_the_cadence_of_the_others(hidden, shown, cadence):
    """What has another cadence is not taken for one of these: 25 frames a second as 60 is close to 24."""
    rng, images = np.random.default_rng(0), [np.full((9, 16, 3), level, np.uint8) for level in (0, 255)]
    pauses = timeline.Pauses(drop=False)
    for count in shown * (1200 // sum(shown)):
        for k in range(count):
            pauses(images[0], images[k == 0 or rng.random() < hidden])
    found = pauses.regular
    assert (found and found[:2]) == cadence


# Times

GRIDS = (Grid(3), Grid(2, slow=2), Grid(rate=Fraction(60)), Grid(rate=Fraction(60), slow=4), Grid(rate=Fraction(8)))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("number", [0, 1, 2, 11])
def test_as_many_frames_are_announced_as_are_made_and_all_times_are_whole_ticks(grid, number):
    rate, image = Fraction(24000, 1001), np.zeros((2, 2, 3), np.uint8)
    frames = [Frame(k / rate, image) for k in range(number)]
    pairs = list(timeline.steps(frames, grid, Fraction(100), cut=None, hold=1 / rate))
    times = [time for pair in pairs for time in pair.times]
    assert times == sorted(set(times)) and times[:1] == ([0] if number else [])
    if number:  # none of a video without frames
        assert len(times) == grid.count(number, rate)
    if grid.rate:  # the output lasts as long as the input
        assert not times or 0 < number / rate * grid.slow - times[-1] <= 1 / grid.rate
    tick = grid.tick(Fraction(1, 1000), rate)  # Matroska's unit, which the rate does not fit
    assert all((time / tick).denominator == 1 for time in times)
    for pair in pairs[:-1]:
        shown = [pair.first.time + t * (pair.second.time - pair.first.time) for t in pair.ts]
        assert [time * grid.slow for time in shown] == pair.times and all(0 <= t < 1 for t in pair.ts)


def test_a_piece_ends_with_the_first_frame_at_its_stop():
    frames = [Frame(Fraction(k), np.zeros((2, 2, 3), np.uint8)) for k in range(6)]
    pairs = list(timeline.steps(frames, Grid(2), Fraction(2), stop=Fraction(4), cut=None))
    assert [(pair.first.time, pair.second.time) for pair in pairs] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert not list(timeline.steps(frames[4:], Grid(2), Fraction(2), stop=Fraction(4), cut=None))


def test_what_repeats_is_decided_within_a_segment():
    """So that a run that goes on at a segment's beginning makes the same frames."""
    frames = [Frame(Fraction(k), np.zeros((2, 2, 3), np.uint8)) for k in range(9)]
    pairs = timeline.steps(frames, Grid(1), Fraction(3), cut=None, repeat=lambda first, second: True)
    assert [(pair.first.time, pair.second.time) for pair in pairs] == [(0, 3), (3, 6), (6, 6)]
