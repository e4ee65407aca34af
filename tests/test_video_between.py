"""What interpolate_video.py puts between frames: nothing across cuts, motion in place of repeats, and the pipeline."""

import copy
import itertools
import re
import sys
import threading
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.filter import Graph
from conftest import formula_image, formula_weights
from video_files import decode, encode, moving, run

import interpolate_video
import models
from benchmarks.video import peak
from models.baselines import Average
from utils import io, shots, timeline, video
from utils.pipeline import between, infer, pictures
from utils.timeline import Frame, Grid, Step

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


# What is in between


def test_weights_that_know_the_middle_alone_halve_again_and_again(tmp_path):
    model = formula_weights(models.build("IFRNet_S"))
    model.decoder4.convblock[0][0].weight.data[:, -1] = 0
    call = models.Interpolator(model, "cpu")
    img0, img1 = (formula_image(32, 48, seed)[None] for seed in (0, 1))
    half = call(img0, img1)[:, 0]
    quarter = call(img0, half)[:, 0]
    late = call(call(half, img1)[:, 0], img1)[:, 0]
    ts = [Fraction(1, 4), Fraction(1, 2), Fraction(7, 8)]
    made = list(between(call, img0, img1, ts))
    assert all(torch.equal(a, b) for a, b in zip(made, (quarter, half, late), strict=True))
    path = tmp_path / "half.pth"
    torch.save(model.state_dict(), path)
    source, out = encode(tmp_path / "in.mp4", moving(3)), tmp_path / "out.mp4"
    options = interpolate_video.parser().parse_args([str(source), str(out), "--factor", "3", "--checkpoint", str(path)])
    with pytest.raises(ValueError, match="trained at t = 0.5 alone.*IFRNet_S"):
        interpolate_video.main(options)
    encode(source, moving(1) * 3)  # where no frame has to be made: it is told before the run
    for options.factor, options.fps, options.slow in ((None, Fraction(30), 1), (None, Fraction(25), 3)):
        with pytest.raises(ValueError, match="trained at t = 0.5 alone.*IFRNet_S"):
            interpolate_video.main(options)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["half.pth", "in.mp4"]
    for options.fps, options.slow in ((Fraction(100), 1), (Fraction(25), 2), (Fraction(25, 2), 1)):
        interpolate_video.main(options)
        options.overwrite = True


def test_within_a_fiftieth_of_a_frame_that_frame_is_shown():
    first, second = (Frame(Fraction(i), image) for i, image in enumerate(moving(2)))
    ts = [Fraction(1, 51), Fraction(1, 50), Fraction(49, 50), Fraction(50, 51)]
    shown = list(infer([Step(first, second, ts, ts)], Average("cpu"), 10))
    assert [picture.made is None for picture in shown] == [True, False, False, True]
    assert shown[0].before is first and shown[3].before is second


def test_batches_of_pairs_give_the_frames_of_single_ones():
    class Several(models.Interpolator):
        most = 3

        def pairs_at_once(self, height, width):
            return self.most

    call = Several(formula_weights(models.build("IFRNet_S")), "cpu")
    frames = [Frame(Fraction(i), image) for i, image in enumerate(moving(6))]
    grid = Grid(3)
    several = list(infer(timeline.steps(frames, grid, Fraction(3), cut=None), call, 3))
    call.most = 1
    single = list(infer(timeline.steps(frames, grid, Fraction(3), cut=None), call, 3))
    assert [(p.segment, p.time) for p in several] == [(p.segment, p.time) for p in single]
    assert [p.segment for p in single] == [0] * 9 + [1] * 7
    difference = [np.abs(a.image().astype(int) - b.image()).max() for a, b in zip(several, single)]
    assert max(difference) <= 1


@pytest.mark.parametrize("most", [1, 3])
def test_frames_of_the_input_are_shown_a_moment_early_or_late(most):
    """Times a hundredth of a frame off those of the input, as of phones and of 23.976 frames a second at 60."""

    class Several(models.Interpolator):
        def pairs_at_once(self, height, width):
            return most

    call = Several(formula_weights(models.build("IFRNet_S")), "cpu")
    frames = [Frame(Fraction(i), image) for i, image in enumerate(moving(5))]
    for off in (Fraction(1, 100), Fraction(-1, 100)):
        pairs = [Step(a, b, [a.time + off % 1], [off % 1]) for a, b in itertools.pairwise(frames)]
        shown = [picture.image() for picture in infer(iter(pairs), call, 9)]
        expected = frames[:-1] if off > 0 else frames[1:]
        assert all((image == frame.image).all() for image, frame in zip(shown, expected, strict=True))


def test_every_pair_has_the_scale_that_is_asked_for_whatever_a_device_takes_at_once():
    class Asked(models.Interpolator):
        most, asked = 1, []

        def pairs_at_once(self, height, width):
            return self.most

        def each(self, img0, img1, times=(0.5,), scale=None):
            self.asked.append((len(img0), scale))
            return super().each(img0, img1, times, scale)

    call = Asked(formula_weights(models.build("IFRNet_S")), "cpu")
    frames = [Frame(Fraction(i), image) for i, image in enumerate(moving(6))]
    wanted = dict(zip((frame.image.sum() for frame in frames), (1.0, 0.5, 0.5, 0.5, 0.25)))
    for call.most in (1, 2):
        list(infer(timeline.steps(frames, Grid(2), Fraction(9), cut=None), call, 9, lambda a, b: wanted[a.sum()]))
    alone, several = call.asked[:5], call.asked[5:]
    assert alone == [(1, 1.0), (1, 0.5), (1, 0.5), (1, 0.5), (1, 0.25)]
    assert several == [(1, 1.0), (2, 0.5), (1, 0.5), (1, 0.25)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(
    ("quick", "most"), [(False, 255), (True, 255), (False, 65535)], ids=["average", "fast mode", "16 bits"]
)
def test_frames_pass_through_a_gpu_unmixed(quick, most):
    kind = np.uint8 if most == 255 else np.uint16
    frames = [Frame(Fraction(i), image.astype(kind) * kind(most // 255)) for i, image in enumerate(moving(40))]
    model = formula_weights(models.build("IFRNet_S"))

    def made(device: str) -> list[np.ndarray]:
        call = Average(device)
        if quick:
            call = models.Interpolator(copy.deepcopy(model), device, mode="fast" if device == "cuda" else "eager")
        steps = timeline.steps(iter(frames), Grid(4), Fraction(3), cut=None)
        several = list(infer(steps, call, 3))  # all of them on their way before the first is looked at
        return [picture.image().astype(int) for picture in several]

    expected = made("cpu")
    assert min(np.abs(a - b).mean() for a, b in zip(expected, expected[1:])) > 1
    for there, here in zip(made("cuda"), expected, strict=True):
        assert np.abs(there - here).mean() < 0.5


def test_the_network_makes_the_frames_of_the_interpolator(tmp_path):
    model = formula_weights(models.build("IFRNet_S"))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    frames = moving(3)
    for i, frame in enumerate(frames):
        io.write_image(tmp_path / "frames" / f"{i}.png", frame)
    arguments = [
        str(tmp_path / "frames"),
        str(tmp_path / "out"),
        "--factor",
        "4",
        "--checkpoint",
        str(tmp_path / "weights.pth"),
    ]
    interpolate_video.main(interpolate_video.parser().parse_args(arguments))
    call = models.Interpolator(model, "cpu")
    expected = io.to_uint8(call(io.to_float(frames[1]), io.to_float(frames[2]), [0.25, 0.5, 0.75]))
    got = [io.read_image(tmp_path / "out" / f"{number:08d}.png") for number in (6, 7, 8)]
    assert all((a == b).all() for a, b in zip(expected, got))


# The pipeline


def test_a_step_across_a_cut_asks_for_nothing_in_between():
    asked = []

    def cut(first, second):
        asked.append((first.mean(), second.mean()))
        return second.mean() > 100

    frames = [Frame(Fraction(i), np.full((8, 8, 3), value, np.uint8)) for i, value in enumerate((0, 10, 200, 210))]
    pairs: list[Step] = list(timeline.steps(frames, Grid(2), Fraction(10), cut=cut))
    assert [step.ts for step in pairs] == [[0, Fraction(1, 2)], [0, 0], [0, 0], [0]]
    assert len(asked) == 3
    made = list(infer(iter(pairs), Average("cpu"), 10))
    assert [picture.made is not None for picture in made] == [False, True, False, False, False, False, False]


def test_a_method_that_returns_nan_does_not_become_black_frames(tmp_path):
    (tmp_path / "method.py").write_text("def interpolate(img0, img1, t):\n    return img0 * float('nan')\n")
    encode(tmp_path / "in.mp4", moving(3))
    with pytest.raises(ValueError, match="a new frame holds NaN; check the model or method"):
        run(tmp_path / "in.mp4", tmp_path / "out.mp4", model=str(tmp_path / "method.py"))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("stage", ["a repeat is looked for", "a frame is made"])
def test_an_error_in_one_stage_ends_all(tmp_path, stage):
    def fail(*_, **__):
        raise ValueError(stage)

    class Failing(Average):
        frames = fail

    source = video.open_source(str(encode(tmp_path / "in.mp4", moving(40))))
    call, repeat = (Failing("cpu"), None) if "made" in stage else (Average("cpu"), fail)
    before = threading.active_count()
    with pytest.raises(ValueError, match=stage) as error:  # which keeps all that its traceback leads to
        list(pictures(source, Grid(2), call, 10, repeat=repeat))
    assert threading.active_count() == before and error.tb


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_length(tmp_path):
    frames, peaks = [frame.repeat(2, 0).repeat(2, 1) for frame in moving(50)], []
    for count in (50, 650):  # 60 MB of frames more
        source = encode(tmp_path / f"{count}.mp4", frames * (count // 50), rate=10, preset="ultrafast")
        words = ["--model_name", "average", "--segment", "5", "--codec", "ffv1"]
        peaks.append(peak(source, tmp_path / f"out{count}.mkv", *words))
    assert peaks[1] < 1.05 * peaks[0], peaks
