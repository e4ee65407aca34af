import argparse
import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, formula_weights, not_waiting
from processes import run_ranks
from small_footage import clip, footage, same, small_material, take

import models
import train_synthetic as script
from datasets import Sample, clips, synthetic
from datasets.stencils import drawn_stencils
from losses.terms import flow_error
from utils import checkpoint, cli, io, metrics, step, training
from utils.meter import Meter


@pytest.fixture(scope="module")
def material():
    return small_material()


def options(**changes):
    plain = {
        "speed": 4.0,
        "seed": 0,
        "real": 0.5,
        "batch_size": 4,
        "effects": 0.0,
        "clip_flow": "none",
        "activation": "prelu",
    }
    return argparse.Namespace(**plain | changes)


def scenes(material, crop, **changes):
    """The batches of scenes with crops of one size, as these options ask for them."""
    return script.mixture_of(options(**changes), script.Data(material, {}, None, []), crop, 0)


def test_footage_is_held_where_a_gpu_has_room_for_it(monkeypatch):
    held, gpu = [], torch.device("cuda")
    monkeypatch.setattr(clips, "Resident", lambda found, device: held.append(found) or "resident")
    found = [clip("a"), clip("b")]
    size = sum(one.frames.size for one in found)
    for free, expected in ((size / script.RESIDENT + 1, "resident"), (size / script.RESIDENT - 1, None)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        assert script.resident(footage(*found), options(workers=1), gpu) == expected
    assert held == [found]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * size, 10 * size))
    assert script.resident(footage(*found), options(workers=1, clip_flow="dis"), gpu) is None  # made on the CPU
    assert script.resident({}, options(workers=1), gpu) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_steps_and_the_samples_for_them_do_not_wait_for_a_gpu(material, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)  # put back afterwards
    gpu, found = torch.device("cuda"), clip("a", size=(112, 144))
    np.save(tmp_path / "a.npy", found.frames)
    found = found._replace(frames=clips.Frames(tmp_path / "a.npy"))
    held, there = clips.Resident([found], gpu), material.to(gpu)
    mixture = script.mixture_of(options(effects=1.0), script.Data(there, footage(found), held, []), 96, 0)
    recipe = step.Recipe(iterations=9, channels_last=True, amp="bf16", ema=0.9, clip_grad=1.0, optimizer="muon")
    state, meter = step.State(models.build("IFRNet_S"), recipe, gpu), Meter(gpu)
    network, batches = step.parallel(state), script.batches_of(mixture, 0, gpu)

    def loss(out, batch, progress):
        return script.weighted(script.terms(out, batch.imgt, batch.flow, psnr=0.005), progress)

    for place in (nullcontext(), not_waiting()):  # at first algorithms are tried and kernels compiled
        with place:
            for _ in range(2 * synthetic.GROUP):
                meter.add(*step.step(network, state, batches, loss, 0.7))
    assert meter.read()["bad_steps"] == 0


def test_small_crops_have_no_effects(material):
    small, smaller = (scenes(material, 48, effects=strength) for strength in (0, 4))
    assert same(take(small, 1)[0], take(smaller, 1)[0])


def test_dis_flow_is_unknown_where_it_leads_to_another_colour():
    frames = clip("a", size=(96, 96)).frames[:3].copy()
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in frames])
    frames[1, 40:50, 40:50] = 255  # in the middle frame alone
    flow = script.dis_flow(frames)
    assert np.isnan(flow[42:48, 42:48]).all()
    away = np.r_[8:30, 66:88]
    assert np.isnan(flow[away][:, away]).mean() < 0.02


def test_dis_flow_is_unknown_where_there_is_nothing_to_find_it_by():
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in clip("a", size=(96, 96)).frames[:3]])
    frames[:, :, 48:] = 128
    flow = script.dis_flow(frames)
    assert np.isnan(flow[:, 60:]).all() and np.isnan(flow[10:-10, 10:40]).mean() < 0.02


def test_flow_error_is_the_mean_distance_in_pixels_of_the_full_frame():
    target, fine, coarse = (torch.full((2, 4, side, side), flow) for side, flow in ((16, 8.0), (16, 9.0), (4, 1.5)))
    assert flow_error((coarse,), target).item() == pytest.approx(2)  # 1.5 of these are 6 pixels
    assert flow_error((fine, coarse), target).item() == pytest.approx(1 + 2)
    target[1] = torch.nan
    assert flow_error((fine, coarse), target).item() == pytest.approx(0.5 + 1)


def test_exact_flow_leads_at_first_and_the_picture_in_the_end(material):
    batch = take(scenes(material, 48), 1)[0]
    out = models.build("IFRNet_S")(batch.img0, batch.img1, batch.t, batch.imgt)
    terms = script.terms(out, batch.imgt, batch.flow)
    first, last = (script.weighted(terms, progress)["flow"].item() for progress in (0, 1))
    assert first / last == pytest.approx(script.FLOW_START / script.FLOW_END, rel=1e-4)
    left = script.weighted(terms, 0.7, without=["flow", "dis"])
    assert set(left) == {"rec", "geo"} and left["geo"] == terms["geo"]
    named = script.terms(out, batch.imgt, batch.flow, psnr=0.01)
    assert not named.keys() & {"psnr", "averaging"}  # columns of the validation
    missing = named["log_error"]
    assert missing.item() == pytest.approx(-0.01 * metrics.psnr(out.imgt, batch.imgt).mean().item(), rel=1e-3)


def test_a_run_begins_with_the_weights_it_is_told_of_in_its_own_network_or_a_wider_one(tmp_path):
    weights = tmp_path / "narrow.pth"
    torch.save(models.build("IFRNet_S").state_dict(), weights)
    img0, img1 = torch.rand(2, 1, 3, 32, 32)
    expected = models.load(weights)(img0, img1, 0.5).imgt
    for name in ("IFRNet_S", "IFRNet"):
        model = script.begin(options(init=str(weights), model_name=name))
        assert model.name == name and (model(img0, img1, 0.5).imgt - expected).abs().max() < 1e-4
    with pytest.raises(ValueError, match="a network with prelu; give --activation prelu"):
        script.begin(options(init=str(weights), activation="gelu"))


def test_weights_that_see_motion_are_not_led_to_it_again(material, monkeypatch, tmp_path):
    losses = []
    monkeypatch.setattr(script, "fit", lambda *given, **_: losses.append(given[2]) or SimpleNamespace(content=dict))
    model, batch = models.build("IFRNet_S"), take(scenes(material, 32), 1)[0]
    for words in ([], ["--init", "IFRNet_S"]):
        args = script.parser().parse_args(words)
        stage = script.Stage(32, 1.0, None)
        data = script.Data(material, {}, None, [batch])
        script.train(args, stage, model, data, tmp_path, torch.device("cpu"), None)
    out = model(batch.img0, batch.img1, batch.t, batch.imgt)
    fresh, known = (loss(out, batch, 0.0) for loss in losses)
    assert fresh["geo"] == 0 < known["geo"]
    torch.testing.assert_close(known["flow"] * script.FLOW_START, fresh["flow"] * script.FLOW_END)


def test_a_resumed_run_keeps_the_loss_of_what_it_was_begun_with(material, monkeypatch, tmp_path):
    content = {"config": {"init": "IFRNet_S"}, "iteration": 0, "seconds": 0.0, "model": {"weight": torch.zeros(1)}}
    asked = []
    monkeypatch.setattr(script, "read_material", lambda args: material)
    monkeypatch.setattr(script.runs, "newest", lambda *_: content)
    monkeypatch.setattr(script, "train", lambda args, *rest: asked.append(args.init) or content)
    words = ["--resume", "auto", "--crops", "32", "--crop_ends", "1", "--device", "cpu", "--log_path", str(tmp_path)]
    script.main(script.parser().parse_args(words))
    assert asked == ["IFRNet_S"]
    with pytest.raises(ValueError, match="--init other.pth: the run in .* began with --init IFRNet_S; leave"):
        script.main(script.parser().parse_args([*words, "--init", "other.pth"]))


def test_counts_of_batchnorm_do_not_become_infinite_in_16_bits(material, monkeypatch, tmp_path):
    weights = models.build("IFRNet_S", "gelu+bn").state_dict()
    for name in weights:
        if name.endswith("num_batches_tracked"):
            weights[name] += 70_000
    monkeypatch.setattr(script, "read_material", lambda args: material)
    monkeypatch.setattr(script, "VALIDATION_SCENES", 1)
    monkeypatch.setattr(script, "train", lambda *args: {"model": weights, "seconds": 60.0})
    words = ["--activation", "gelu+bn", "--crops", "32", "--crop_ends", "1", "--device", "cpu"]
    script.main(script.parser().parse_args([*words, "--log_path", str(tmp_path)]))
    shipped = models.load(tmp_path / "IFRNet_S" / "IFRNet_S.pth").state_dict()
    assert {int(count) for name, count in shipped.items() if name.endswith("num_batches_tracked")} == {70_000}


def test_signals_stay_alive_through_a_fresh_network_and_its_flow_begins_near_zero(material):
    batch = take(scenes(material, 64), 1)[0]
    torch.manual_seed(0)
    model = models.build("IFRNet_S")
    script.initialise(model)
    with torch.no_grad():
        features = model.encoder(batch.img0 - batch.img0.mean())
        out = model(batch.img0, batch.img1, 0.5)
    assert all(0.1 < feature.std() / batch.img0.std() < 10 for feature in features)
    assert out.flows[0].abs().max() < 2


@pytest.mark.parametrize("crops, ends", [([96], [0.5]), ([96, 128], [1.0]), ([96, 128], [0.7, 0.5]), ([96], [0.0])])
def test_stages_that_do_not_end_the_run_are_refused(crops, ends):
    with pytest.raises(ValueError, match="--crop_ends"):
        script.stages(crops, ends)


def test_an_end_that_is_no_number_is_refused():
    for end in [float("nan") for _ in range(100)]:  # their order in a set is chance
        with pytest.raises(ValueError, match="--crop_ends"):
            script.stages([96, 128], [end, 1.0])


@pytest.mark.parametrize(
    "words",
    ["--real 1.5", "--procedural 1.5", "--minutes 0", "--minutes -5", "--effects -1", "--crops 40"]
    + ["--patch_size 4", "--speed 0"],
)
def test_numbers_that_make_no_run_are_named(typed, tmp_path, words):
    status, _, error = typed(script.main, script.parser(), *words.split(), "--log_path", tmp_path, "--device", "cpu")
    assert status == 2 and words.split()[0] in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["--real 0.5", "--val_clips a.mp4 b.mp4", "--clip_flow dis"])
def test_what_is_asked_of_footage_wants_footage(typed, tmp_path, words):
    status, _, error = typed(script.main, script.parser(), *words.split(), "--log_path", tmp_path, "--device", "cpu")
    assert status == 2 and f"{words}: is about footage; give --clips" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["--real 0", "--without dis flow"])
def test_flow_of_footage_that_nothing_uses_is_refused(typed, tmp_path, words):
    options = [*words.split(), "--clip_flow", "dis", "--clips", tmp_path, "--log_path", tmp_path / "run"]
    status, _, error = typed(script.main, script.parser(), *options, "--device", "cpu")
    assert status == 2 and "--clip_flow dis: has no effect with --real 0 or --without dis flow" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.25, 0.3])
def test_a_share_of_footage_that_rounds_to_none_is_told(
    material, small_network, tmp_path, own_cache, monkeypatch, capsys, share
):
    monkeypatch.setattr(script, "read_material", lambda args: material)
    for name in ("a", "b"):
        write_folder(tmp_path / "clips" / name, clip(name).frames)
    words = f"--clips {tmp_path / 'clips'} --crops 48 --crop_ends 1 --batch_size 1 --real {share} --workers 0"
    words += f" --minutes 0.001 --log_path {tmp_path} --device cpu --model_name IFRNet_XS"
    script.main(script.parser().parse_args(words.split()))
    told = "crop 48: no footage, as --real 0.25 of 2 samples is no more than half of one" in capsys.readouterr().out
    assert told == (share == 0.25)


def test_one_clip_is_not_enough_to_train_and_validate_on(tmp_path, own_cache):
    write_folder(tmp_path / "clips" / "a", clip("a").frames)
    with pytest.raises(ValueError, match="all 1 clips are for validation; add another"):
        script.read_footage(script.parser().parse_args(["--clips", str(tmp_path / "clips")]))


def write_folder(folder, frames):
    for number, frame in enumerate(frames):
        io.write_image(folder / f"{number:02d}.png", frame)


def test_a_run_by_the_clock_ends_whole_and_goes_on_to_a_later_horizon(
    small_network, tmp_path, own_cache, monkeypatch, capsys
):
    """By a clock on which every step takes a second, and nothing else takes any time."""
    clock, sides = SimpleNamespace(now=0.0, monotonic=lambda: clock.now), []

    def ticking(network, state, stream, *rest):
        clock.now += 1
        return step.step(network, state, (sides.append(b.img0.shape[-1]) or b for b in stream), *rest)

    for module in (step, training):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(training, "step", ticking)
    for name in "abcde":
        write_folder(tmp_path / "clips" / name, clip(name, seed=ord(name)).frames)
    command = (
        f"--clips {tmp_path / 'clips'} --val_clips e --log_path {tmp_path / 'run'} --crops 32 48 --crop_ends 0.5 1 "
        "--batch_size 3 --log_every 2 --workers 0 --patch_size 96 --device cpu --amp none --clip_flow dis "
        "--model_name IFRNet_XS"
    ).split()
    monkeypatch.setattr(synthetic, "TEXTURES", 4)
    monkeypatch.setattr(synthetic, "drawn_stencils", lambda seed: drawn_stencils(2))
    script.main(script.parser().parse_args([*command, "--minutes", "0.1", "--resume", "auto"]))
    folder = tmp_path / "run" / "IFRNet_XS"
    first = checkpoint.read(folder / checkpoint.LATEST)
    assert f"{folder}: no run to resume in this folder; starting a new one" in capsys.readouterr().out
    assert first["seconds"] == first["iteration"] == 6 and sides == [32] * 3 + [48] * 3
    shipped = torch.load(folder / "IFRNet_XS.pth", weights_only=True)
    assert all(value.dtype == torch.float16 for value in shipped.values())
    average = first["ema"]
    assert all(torch.equal(average[name].half(), value) for name, value in shipped.items())
    assert models.load(folder / "IFRNet_XS.pth").any_time

    with pytest.raises(ValueError, match="a run is here"):
        script.main(script.parser().parse_args([*command, "--minutes", "9"]))
    script.main(script.parser().parse_args([*command, "--minutes", "0.15", "--resume", "auto"]))
    second = checkpoint.read(folder / checkpoint.LATEST)
    assert second["seconds"] == second["iteration"] == 9 and sides[6:] == [48] * 3
    assert "starting a new one" not in capsys.readouterr().out


def on_little_material(*words):
    """In a process of its own: the script, which would otherwise prepare scenes for longer than this run lasts."""
    synthetic.TEXTURES, script.VALIDATION_SCENES = 4, 2
    synthetic.drawn_stencils = lambda seed: drawn_stencils(2)
    sys.argv[1:] = words
    cli.run(script.main, script.parser())


def test_two_ranks_change_crops_and_end_together(small_network, tmp_path):
    words = (
        "--minutes 0.03 --crops 32 48 --crop_ends 0.5 1 --batch_size 1 --workers 0 --patch_size 64 --device cpu "
        f"--amp none --model_name IFRNet_XS --log_path {tmp_path}"
    ).split()
    (status, said), (other, others) = run_ranks(tmp_path, words, words, work=on_little_material)
    assert status == other == 0, said + others
    assert "iteration" in (tmp_path / "IFRNet_XS" / "train.log").read_text()
    assert models.load(tmp_path / "IFRNet_XS" / "IFRNet_XS.pth").any_time


def test_clips_to_validate_on_are_never_trained_on(tmp_path, own_cache):
    for name in "abcde":
        write_folder(tmp_path / "clips" / name, clip(name, seed=ord(name)).frames)
    for typed in ([], ["--val_clips", "b", "c"]):
        args = script.parser().parse_args(["--clips", str(tmp_path / "clips"), *typed])
        train, val = script.read_footage(args)
        held = {window.clip.name for window in val}
        assert held == (set("bc") if typed else set("ae"))
        assert not held & {w.clip.name for by_clip in train.values() for windows in by_clip for w in windows}


def test_few_photographs_are_helped_by_many_textures(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "TEXTURES", 3)
    monkeypatch.setattr(synthetic, "drawn_stencils", lambda seed: drawn_stencils(2))
    io.write_image(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    for typed, share in (([], 0.5), (["--images", str(tmp_path)], 0.1), (["--procedural", "0.3"], 0.3)):
        made = script.read_material(script.parser().parse_args(["--patch_size", "64", *typed]))
        assert made.odds[-3:].sum().item() == pytest.approx(share)


def test_without_footage_scenes_that_move_are_validated_on(material):
    held = script.validation_scenes(material, options())
    assert len(held) == script.VALIDATION_SCENES and all(isinstance(sample, Sample) for sample in held)
    assert all((sample.img0 != sample.imgt).any() for sample in held)  # else averaging would be perfect


def test_a_run_that_is_over_says_so(small_network, tmp_path, typed, monkeypatch):
    monkeypatch.setattr(synthetic, "TEXTURES", 4)
    monkeypatch.setattr(synthetic, "drawn_stencils", lambda seed: drawn_stencils(2))
    monkeypatch.setattr(script, "VALIDATION_SCENES", 2)
    words = f"--crops 32 --crop_ends 1 --batch_size 1 --workers 0 --patch_size 64 --log_path {tmp_path}".split()
    words += ["--model_name", "IFRNet_XS"]
    assert typed(script.main, script.parser(), *words, "--minutes", 0.01).status == 0
    left = tmp_path / "IFRNet_XS" / ".IFRNet_XS.here.7.pth"  # by a kill while it wrote the weights to ship
    left.touch()
    done = typed(script.main, script.parser(), *words, "--minutes", 0.001, "--seed", 3, "--resume", "auto")
    assert not left.exists()
    assert done.status == 0 and "nothing to do: the run has taken" in done.out
    assert "note: the run used seed 0 until now, and 3 from here on" in done.out
    assert checkpoint.read(tmp_path / "IFRNet_XS" / checkpoint.LATEST)["config"]["step_size"] == 1  # of all ranks


def test_weights_to_begin_with_are_scored_first_and_are_best_until_they_are_beaten(
    small_network, tmp_path, monkeypatch, capsys
):
    """Also by a clock that has run out before the first step, which is taken all the same."""
    monkeypatch.setattr(synthetic, "TEXTURES", 4)
    monkeypatch.setattr(synthetic, "drawn_stencils", lambda seed: drawn_stencils(2))
    monkeypatch.setattr(script, "VALIDATION_SCENES", 2)
    torch.save(formula_weights(models.build("IFRNet_XS")).state_dict(), tmp_path / "begin.pth")
    words = f"--crops 32 --crop_ends 1 --batch_size 1 --workers 0 --patch_size 64 --log_path {tmp_path}".split()
    words += ["--model_name", "IFRNet_XS", "--init", str(tmp_path / "begin.pth"), "--device", "cpu", "--ema", "0"]
    script.main(script.parser().parse_args([*words, "--lr_start", "0.1", "--minutes", "0.0001"]))
    first, then = re.findall(r"iteration (\d+): psnr (\S+)", capsys.readouterr().out)
    assert (first[0], then[0]) == ("0", "1") and float(first[1]) > float(then[1])
    best = models.load(tmp_path / "IFRNet_XS" / checkpoint.BEST).state_dict()
    begun = models.load(tmp_path / "begin.pth").state_dict()
    assert all(torch.equal(best[name], value) for name, value in begun.items())


def test_the_model_card_tells_the_shipped_files():
    card = (ROOT / "checkpoints" / "README.md").read_text()
    for path in (ROOT / "checkpoints").glob("*.pth"):
        assert path.name in card and models.load(path).any_time
    readme = (ROOT / "README.md").read_text()
    scores = re.findall(r"\d\d\.\d\d/\.\d{4}", readme[readme.index("## Weights") : readme.index("## Data")])
    assert len(scores) > 10 and not [score for score in scores if score not in card]
