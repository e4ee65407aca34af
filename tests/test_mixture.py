from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from small_footage import clip, footage, same, small_material, take
from torch.utils.data import DataLoader

from datasets import Sample, clips, effects, synthetic, transforms
from datasets import mixture as module
from datasets.mixture import Footage, Mixture, own_groups
from datasets.synthetic import GROUP
from models.layers import warp
from train_synthetic import dis_flow


@pytest.fixture(scope="module")
def material():
    return small_material()


def mixed(material, windows, crop=48, size=8, **changes):
    return Mixture(material, windows, crop, size, **{"real": 0.5, "speed": 4.0, "strength": 0.0} | changes)


def take_beside(mixture, count, workers=0):
    """As on a GPU, where other processes read the footage."""
    read = DataLoader(Footage(mixture), batch_size=None, num_workers=workers)
    return list(islice(mixture.batches(map(mixture.group, own_groups(mixture.start), read)), count))


def drawn(mixture, seed):
    """A window of footage as a Sample."""
    raw = transforms.Raw(*(part[None] for part in mixture.read(mixture.draw(np.random.default_rng(seed)))))
    return Sample(*(part[0] for part in transforms.finish(raw, torch.device("cpu"))))


def test_batches_are_a_function_of_seed_and_iteration_whatever_the_workers(material, one_thread):
    windows = footage(clip("a"), clip("b", seed=1))
    here = take(mixed(material, windows), 10)
    beside = take(mixed(material, windows), 10, workers=2)
    later = take(mixed(material, windows, start=3), 7)
    assert all(map(same, here, beside)) and all(map(same, here[3:], later))
    assert not any(same(here[i], here[j]) for i in range(10) for j in range(i))
    other = take(mixed(material, windows, seed=1), 1)
    assert not same(here[0], other[0])


# In PyTorch, a spawned worker that ends while it still sends a batch aborts: nothing that a test could wait for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_batches_come_the_same_from_a_spawned_worker(material, one_thread):
    """As on systems that do not fork processes."""
    mixture = mixed(material, footage(clip("a")), 96, 4, strength=1.0)
    read = DataLoader(mixture, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    there = list(islice(mixture.batches(read), 2))
    assert all(map(same, take(mixture, 2), there))


def test_footage_has_its_share_and_no_flow_and_scenes_have_theirs(material):
    batch = take(mixed(material, footage(clip("a"))), 1)[0]
    assert batch.img0.shape == (8, 3, 48, 48) and batch.t.shape == (8,)  # 4 of 96x96 are 8 of half the side
    assert batch.flow[:4].isfinite().all() and batch.flow[4:].isnan().all()
    k = batch.t[4:] * 8
    assert torch.equal(k, k.round())  # k / (N - 1) for windows of 3, 5 or 9 frames


def test_footage_read_beside_a_gpu_makes_the_same_batches(material, one_thread):
    windows = footage(clip("a"), clip("b", seed=1))
    mixture = mixed(material, windows, start=3)
    assert all(map(same, take(mixture, 6), take_beside(mixture, 6, workers=2)))


@pytest.mark.filterwarnings("error")
def test_footage_in_the_memory_of_a_device_makes_the_same_batches(material, tmp_path, monkeypatch):
    """So it does on a GPU, by the same code. Clips of several sizes, zoomed and halved windows among them."""
    monkeypatch.setattr(clips, "COPIED", 5)
    found = []
    for seed, size in enumerate([(112, 144), (64, 80), (101, 99), (150, 97)]):
        made = clip(f"clip {seed}", size=size, seed=seed)
        np.save(tmp_path / f"{seed}.npy", made.frames)
        found.append(made._replace(frames=clips.Frames(tmp_path / f"{seed}.npy")))
    read, resident = (
        mixed(material, footage(*found), 48, 32, real=1, resident=held)
        for held in (None, clips.Resident(found, torch.device("cpu")))
    )
    expected = take(read, 8)
    assert all(map(same, expected, take(resident, 8))) and all(map(same, expected, take_beside(resident, 8, workers=2)))
    assert Footage(resident).mixture.resident.pixels is None  # other processes do without


@pytest.mark.parametrize("real, unknown", [(0, 0), (1, 8)])
def test_batches_may_be_of_scenes_or_of_footage_alone(material, real, unknown):
    batch = take(mixed(material, footage(clip("a")), real=real), 1)[0]
    assert batch.img0.shape == (8, 3, 48, 48)
    assert batch.flow.isnan().flatten(1).all(1).sum() == unknown


def test_half_of_the_windows_are_halved_where_a_crop_is_left(material):
    """A halved window is that of a halved clip, which is too small to be halved again."""
    large = clip("a", size=(64, 96))
    small = large._replace(frames=np.stack([clips.halved(frame) for frame in large.frames]))
    mixtures = [mixed(material, footage(one), 32, 12) for one in (large, small)]
    seen = [[mixture.read(mixture.draw(np.random.default_rng(k))) for k in range(60)] for mixture in mixtures]
    halved = sum(map(same, *seen))
    assert 15 < halved < 45


def test_every_fourth_group_of_batches_is_one_of_the_next_stage(material, one_thread):
    windows = footage(clip("a"))
    following = mixed(material, windows)
    mixture = mixed(material, windows, 32, 12, ahead=following)
    here, beside, on_gpu = take(mixture, 20), take(mixture, 20, workers=2), take_beside(mixture, 20)
    alone, larger = (take(mixed(material, windows, side, size), 20) for side, size in ((32, 12), (48, 8)))
    for i in range(20):
        expected = (larger if i // GROUP % 4 == 3 else alone)[i]
        assert same(here[i], expected) and same(beside[i], expected) and same(on_gpu[i], expected)


def test_effects_0_leaves_scenes_as_they_are_drawn_and_1_does_not(material, one_thread):
    scenes = synthetic.Synthetic(material, (96, 96), speed=4.0)
    seed = np.random.default_rng((0, 0, 0)).integers(2**62)
    scenes.random.manual_seed(int(seed))
    expected = Sample(*(x[::GROUP] for x in scenes.batch(8 * GROUP, any_time=True)))
    without, having = (take(mixed(material, {}, 96, strength=strength), 1)[0] for strength in (0, 4))
    assert same(expected, without) and not same(without, having)
    again = take(mixed(material, {}, 96, strength=4), 1, workers=1)[0]
    assert same(having, again)


def test_effects_come_to_footage_too(material, monkeypatch):
    for share in ("DRIFT", "NOISE", "OVERLAY"):
        monkeypatch.setattr(effects, share, 0.0)
    windows = footage(clip("a", size=(112, 128)))
    plain, having = (
        take(mixed(material, windows, 96, strength=strength), 1)[0]
        for strength in (0, 5)  # compression of everything
    )
    assert torch.equal(plain.flow[4:].isnan(), having.flow[4:].isnan())
    assert all((plain.imgt[i] != having.imgt[i]).any() for i in range(4, 8))


@pytest.mark.parametrize("halved, lengths", [(0, (8, 16)), (1, (4, 8))])
def test_dis_finds_the_motion_of_footage_through_every_turn_of_it(material, monkeypatch, halved, lengths):
    """The clip moves by 2 pixels a frame; flow that is not known is NaN."""
    smooth = clip("a", size=(160, 200))
    smooth = smooth._replace(frames=np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in smooth.frames]))
    monkeypatch.setattr(module, "SPANS", {5: 1.0})
    monkeypatch.setattr(module, "HALVED", halved)
    mixture = mixed(material, {5: [clips.windows([smooth], 5)]}, real=1, label=dis_flow)
    for seed in range(12):
        sample = drawn(mixture, seed)
        both = sample.flow[:2] - sample.flow[2:]  # along one axis; twice as long where it was zoomed
        known = both.isfinite().all(0)
        length = both[:, known].norm(dim=0).median().item()
        assert known.float().mean() > 0.8
        assert min(abs(length - expected) for expected in lengths) < 0.5
        back = sample.flow[:2].norm(dim=0)[known].median().item()
        assert back == pytest.approx(sample.t.item() * length, abs=0.5)
        warped = warp(sample.img0[None], sample.flow[None, :2].nan_to_num(0))[0]
        y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
        from_here = torch.stack([x, y]) + sample.flow[:2]  # in the first frame, which is not seen beyond the crop
        inside = ((from_here >= 0) & (from_here <= 47)).all(0)
        assert (warped - sample.imgt).abs()[:, known & inside].mean() < 0.01


def test_crops_with_flow_are_cut_as_those_without(material):
    windows = footage(clip("a", size=(150, 170)))
    plain, having = (mixed(material, windows, label=label) for label in (None, dis_flow))
    for seed in range(20):
        one, other = (drawn(mixture, seed) for mixture in (plain, having))
        assert (one.imgt - other.imgt).abs().max() <= 2 / 255 and one.t == other.t


def test_clips_smaller_than_the_crop_are_left_to_smaller_crops(material):
    windows = footage(clip("small", size=(40, 48)), clip("large", size=(72, 96)))
    assert len(mixed(material, windows, 32).footage[3]) == 2
    assert len(mixed(material, windows, 64).footage[3]) == 1
    assert mixed(material, windows, 80).real == 0


def test_clips_too_short_for_some_windows_still_give_the_others(material):
    short = [[clips.Window(clip("short", 4), 0, 3, 1)]]
    mixture = mixed(material, {3: short, 5: [], 9: []}, 32, 12)
    assert mixture.real == 6 * GROUP and drawn(mixture, 0).img0.shape == (3, 32, 32)
