"""What interpolate_video.py puts between frames, and the pipeline that makes it."""

import copy
import itertools
import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import formula_image, formula_weights
from video_files import encode, moving, run

import interpolate_video
import models
from benchmarks.video import peak
from models.baselines import Average
from utils import io, timeline, video
from utils.pipeline import between, infer, pictures
from utils.timeline import Frame, Grid, Step

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
