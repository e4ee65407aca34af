import argparse

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.utils.data import DataLoader

import models
import train_synthetic as script
from datasets import Sample, clips, synthetic
from losses.terms import flow_error
from utils import checkpoint, io


@pytest.fixture(scope="module")
def photos():
    return synthetic.photo_windows(side=96)


def clip(name, frames=12, size=(64, 80), seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, (size[1] + 2 * frames) // 8 + 1, 3), np.uint8)
    wide = noise.repeat(8, 0).repeat(8, 1)
    moving = np.stack([wide[:, 2 * i : 2 * i + size[1]] for i in range(frames)])
    return clips.Clip(name, moving, np.zeros(frames - 1, bool))


def footage(*found):
    return {span: [clips.windows([c], span) for c in found] for span in script.SPANS}


def options(**changes):
    return argparse.Namespace(**{"speed": 4.0, "seed": 0, "real": 0.5, "batch_size": 4} | changes)


def take(mixture, count, workers=0):
    loader = DataLoader(mixture, batch_size=None, num_workers=workers)
    return [batch for batch, _ in zip(loader, range(count))]


def same(one, other):
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, other))


def test_batches_are_a_function_of_seed_and_iteration_whatever_the_workers(photos):
    windows = footage(clip("a"), clip("b", seed=1))
    here = take(script.Mixture(photos, windows, 48, options(), start=0), 4)
    beside = take(script.Mixture(photos, windows, 48, options(), start=0), 4, workers=2)
    later = take(script.Mixture(photos, windows, 48, options(), start=2), 2)
    assert all(map(same, here, beside)) and all(map(same, here[2:], later))
    assert not same(here[0], here[1])
    other = take(script.Mixture(photos, windows, 48, options(seed=1), start=0), 1)
    assert not same(here[0], other[0])


def test_footage_has_its_share_and_no_flow_and_scenes_have_theirs(photos):
    batch = take(script.Mixture(photos, footage(clip("a")), 48, options(), start=0), 1)[0]
    assert batch.img0.shape == (8, 3, 48, 48) and batch.t.shape == (8,)  # 4 of 96x96 are 8 of half the side
    assert batch.flow[:4].isfinite().all() and batch.flow[4:].isnan().all()
    k = batch.t[4:] * 8
    assert torch.equal(k, k.round())  # k / (N - 1) for windows of 3, 5 or 9 frames


def test_clips_smaller_than_the_crop_are_left_to_smaller_crops(photos):
    windows = footage(clip("small", size=(40, 48)), clip("large", size=(72, 96)))
    assert len(script.Mixture(photos, windows, 32, options(), 0).footage[3]) == 2
    assert len(script.Mixture(photos, windows, 64, options(), 0).footage[3]) == 1
    assert script.Mixture(photos, windows, 80, options(), 0).real == 0


def test_flow_error_is_the_mean_distance_in_pixels_of_the_full_frame():
    target = torch.full((2, 4, 16, 16), 8.0)
    assert flow_error(torch.full((2, 4, 4, 4), 1.5), target).item() == pytest.approx(2)  # 1.5 of these are 6 pixels
    target[1] = torch.nan
    assert flow_error(torch.full((2, 4, 4, 4), 1.5), target).item() == pytest.approx(1)


def test_exact_flow_leads_at_first_and_the_picture_in_the_end(photos):
    batch = take(script.Mixture(photos, {}, 48, options(), 0), 1)[0]
    out = models.build("IFRNet_S")(batch.img0, batch.img1, batch.t, batch.imgt)
    terms = script.terms(out, batch.imgt, batch.flow)
    first, last = (script.weighted(terms, progress)["flow"].item() for progress in (0, 1))
    assert first / last == pytest.approx(script.FLOW_START / script.FLOW_END, rel=1e-4)


def test_signals_stay_alive_through_a_fresh_network_and_its_flow_begins_near_zero(photos):
    batch = take(script.Mixture(photos, {}, 64, options(), 0), 1)[0]
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


def write_folder(folder, frames):
    for number, frame in enumerate(frames):
        io.write_image(folder / f"{number:02d}.png", frame)


def test_a_run_by_the_clock_ends_whole_and_goes_on_to_a_later_horizon(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "CACHE", tmp_path / "cache")
    for name in "abcde":
        write_folder(tmp_path / "clips" / name, clip(name, seed=ord(name)).frames)
    command = (
        f"--clips {tmp_path / 'clips'} --val_clips e --log_path {tmp_path / 'run'} --crops 32 48 --crop_ends 0.5 1 "
        "--batch_size 3 --log_every 2 --workers 0 --window 96 --device cpu --amp none"
    ).split()
    script.main(script.parser().parse_args([*command, "--minutes", "0.06"]))
    folder = tmp_path / "run" / "IFRNet_S"
    first = checkpoint.read(folder / checkpoint.LATEST)
    assert first["seconds"] >= 3.6 and first["iteration"] > 0
    shipped = torch.load(folder / "IFRNet_S.pth", weights_only=True)
    assert all(value.dtype == torch.float16 for value in shipped.values())
    average = first["ema"]
    assert all(torch.equal(average[name].half(), value) for name, value in shipped.items())
    assert models.load(folder / "IFRNet_S.pth").any_time

    with pytest.raises(ValueError, match="a run is here"):
        script.main(script.parser().parse_args([*command, "--minutes", "9"]))
    later = first["seconds"] / 60 + 0.06
    script.main(script.parser().parse_args([*command, "--minutes", str(later), "--resume", "auto"]))
    second = checkpoint.read(folder / checkpoint.LATEST)
    assert second["iteration"] > first["iteration"] and second["seconds"] >= 60 * later


def test_clips_to_validate_on_are_never_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "CACHE", tmp_path / "cache")
    for name in "abcde":
        write_folder(tmp_path / "clips" / name, clip(name, seed=ord(name)).frames)
    for typed in ([], ["--val_clips", "b", "c"]):
        args = script.parser().parse_args(["--clips", str(tmp_path / "clips"), *typed])
        train, val = script.read_footage(args)
        held = {window.clip.name for window in val}
        assert held == (set("bc") if typed else set("ae"))
        assert not held & {w.clip.name for by_clip in train.values() for windows in by_clip for w in windows}


def test_without_footage_scenes_that_training_never_draws_are_validated_on(photos):
    args = options()
    held = script.validation_scenes(photos, args)
    assert len(held) == script.VALIDATION_SCENES and all(isinstance(sample, Sample) for sample in held)


def test_the_model_card_tells_the_shipped_files():
    card = (ROOT / "checkpoints" / "README.md").read_text()
    for path in (ROOT / "checkpoints").glob("*.pth"):
        assert path.name in card and models.load(path).any_time
