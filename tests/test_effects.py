import cv2
import numpy as np
import pytest
import torch

from datasets import Sample, effects
from datasets.effects import Effects, compress, drift, noise, overlay
from datasets.stencils import drawn_stencils, signed_distance
from datasets.synthetic import photo_patches, to_device
from utils import io

SHARES = ("DRIFT", "NOISE", "OVERLAY", "COMPRESSION")


@pytest.fixture(scope="module")
def stencils():
    return drawn_stencils(60, 80)


@pytest.fixture
def alone(monkeypatch):
    """alone(*names): only these effects, on every sample."""
    return lambda *names: [monkeypatch.setattr(effects, share, float(share in names)) for share in SHARES]


def batch(n=6, size=(48, 64)):
    random = torch.Generator().manual_seed(0)
    frames = [0.2 + 0.6 * torch.rand(n, 3, *size, generator=random) for _ in range(3)]
    return Sample(*frames, 0.1 + 0.8 * torch.rand(n, generator=random), torch.randn(n, 4, *size, generator=random))


def seeded(strength, stencils, seed=0):
    return Effects(strength, stencils, torch.Generator().manual_seed(seed))


def same(one, other):
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, other))


def test_without_strength_samples_stay_bit_for_bit(stencils):
    assert same(seeded(0, stencils)(batch(40)), batch(40))


def test_same_seed_same_effects_and_the_given_sample_stays_as_it_was(stencils):
    given = batch(40)
    one, again, other = (seeded(1, stencils, seed)(given) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, other) and same(given, batch(40))
    assert all(frame.min() >= 0 and frame.max() <= 1 for frame in one[:3])


@pytest.mark.parametrize("name", SHARES)
def test_every_effect_comes_to_its_share(stencils, monkeypatch, name):
    monkeypatch.setattr(effects, "QUALITY", (5, 6))
    for share in SHARES:
        monkeypatch.setattr(effects, share, 0.3 if share == name else 0)
    sample = batch(400, (16, 32))
    changed = (seeded(0.5, stencils)(sample).img0 != sample.img0).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.15, abs=0.055)


def test_an_overlay_rests_in_all_frames_and_its_flow_is_zero(stencils, alone):
    alone("OVERLAY")
    sample = batch(30)
    done = seeded(1, stencils)(sample)
    resting = (done.flow == 0).all(1)
    untouched = (done.flow == sample.flow).all(1)
    assert torch.all(resting | untouched)
    assert 20 < resting.flatten(1).any(1).sum()  # some overlays lie outside of the frame
    hidden = resting[:, None].expand(-1, 3, -1, -1)
    change = (done.img0 - done.imgt).abs()[hidden], (sample.img0 - sample.imgt).abs()[hidden]
    assert change[0].mean() < 0.3 * change[1].mean() and change[0].median() == 0


def test_an_overlay_is_what_compositing_says_and_unknown_flow_beside_it_stays_unknown():
    frames, flow = torch.rand(1, 3, 3, 8, 8), torch.full((1, 4, 8, 8), torch.nan)
    distance = torch.full((1, 8, 8), -9.0)
    distance[0, :, :4] = 9
    args = distance, torch.tensor([[0.2, 0.4, 0.6]]), torch.zeros(1)
    done, after = overlay(frames, flow, *args, torch.tensor([0.75]))
    expected = 0.25 * frames + 0.75 * torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)
    assert torch.allclose(done[..., :4], expected[..., :4]) and torch.equal(done[..., 4:], frames[..., 4:])
    assert (after[..., :4] == 0).all() and after[..., 4:].isnan().all()
    assert overlay(frames, flow, *args, torch.tensor([0.4]))[1].isnan().all()  # it is seen through


def test_marks_are_distances_in_pixels(stencils, monkeypatch):
    monkeypatch.setattr(effects, "LETTERBOX", 0)
    disc = signed_distance(cv2.circle(np.zeros((320, 320), np.uint8), (160, 160), 100, 255, -1), 80)
    discs = stencils._replace(distance=torch.from_numpy(disc).expand(len(stencils.kind), -1, -1))
    distance, *_ = seeded(1, discs)._marks(torch.arange(300), 64, 64)
    slope = torch.stack(torch.gradient(distance, dim=(1, 2))).norm(dim=0)
    assert slope[distance.abs() < 2].median().item() == pytest.approx(1, abs=0.05)


def test_a_rim_is_black_and_as_wide_as_asked():
    frames = torch.ones(1, 3, 3, 1, 20)
    distance = (10 - torch.arange(20.0)).view(1, 1, 20)
    done, _ = overlay(frames, torch.ones(1, 4, 1, 20), distance, torch.ones(1, 3), torch.tensor([3.0]), torch.ones(1))
    assert done[0, 0, 0, 0].tolist() == [1.0] * 10 + [0.5] + 2 * [0.0] + [0.5] + 6 * [1.0]


def test_drift_is_the_formula_in_float64_and_flow_and_the_frame_half_way_stay():
    frames, gain, gamma = torch.rand(2, 3, 3, 6, 6), torch.tensor([0.3, -0.2]), torch.tensor([-0.4, 0.25])
    times = torch.tensor([[0, 0.5, 1], [0, 0.2, 1]])
    done = drift(frames, times, gain, gamma)
    assert torch.allclose(done[0, 1], frames[0, 1], atol=1e-6)
    for b in range(2):
        for k in range(3):
            s = float(times[b, k]) - 0.5
            x = frames[b, k].double().numpy()
            expected = np.clip(x ** np.exp(float(gamma[b]) * s) * np.exp(float(gain[b]) * s), 0, 1)
            assert np.abs(done[b, k].numpy() - expected).max() < 1e-6


def test_drift_leaves_flow_and_time(stencils, alone):
    alone("DRIFT")
    sample = batch()
    done = seeded(1, stencils)(sample)
    assert torch.equal(done.flow, sample.flow) and torch.equal(done.t, sample.t)
    assert not torch.equal(done.img0, sample.img0) and not torch.equal(done.imgt, sample.imgt)


def test_noise_is_in_the_frames_that_go_in_and_not_in_the_target(stencils, alone):
    alone("NOISE")
    sample = batch()
    done = seeded(1, stencils)(sample)
    assert torch.equal(done.imgt, sample.imgt) and torch.equal(done.flow, sample.flow)
    first, last = done.img0 - sample.img0, done.img1 - sample.img1
    correlation = torch.corrcoef(torch.stack([first.flatten(), last.flatten()]))[0, 1]
    assert first.std() > 1e-3 and abs(correlation) < 0.02


@pytest.mark.parametrize("level", [0.2, 0.5, 0.8])
def test_noise_has_the_asked_deviation_and_more_where_it_is_bright(level):
    frames = torch.full((2, 2, 3, 60, 60), level)
    done = noise(frames, torch.tensor([0.01, 0.03]), torch.Generator().manual_seed(0))
    expected = np.array([0.01, 0.03]) * (0.5 + level) ** 0.5
    assert np.allclose((done - frames).flatten(1).std(1).numpy(), expected, rtol=0.03)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_compression_does_what_opencvs_jpeg_does(quality):
    picture = photo_patches(side=192)[3].numpy()
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x221111]  # 4:2:0
    theirs = cv2.imdecode(cv2.imencode(".jpg", picture[..., ::-1], settings)[1], cv2.IMREAD_COLOR)[..., ::-1]
    frame = io.to_float(picture)
    ours = compress(frame.expand(1, 3, -1, -1, -1), torch.tensor([float(quality)]), (0, 0))[0, 1]
    loss = (io.to_float(theirs) - frame).square().mean()
    assert (ours - io.to_float(theirs)).square().mean() < 0.25 * loss
    assert (ours - frame).square().mean() == pytest.approx(loss.item(), rel=0.12)


def test_frames_are_compressed_each_at_its_quality_and_where_their_corner_lies():
    frames, quality = torch.rand(2, 3, 1, 24, 40).expand(-1, -1, 3, -1, -1), torch.tensor([10.0, 80.0])
    done = compress(frames, quality, (5, 11))
    assert done.shape == frames.shape
    wide = torch.nn.functional.pad(frames.flatten(0, 1), (11, 13, 5, 3), mode="replicate").view(2, 3, 3, 32, 64)
    for b in range(2):
        alone = compress(wide[b : b + 1], quality[b : b + 1], (0, 0))[..., 5:29, 11:51]
        assert torch.allclose(done[b], alone[0], atol=1e-5)
    error = (done - frames).square().flatten(1).mean(1)
    assert error[0] > 2 * error[1]


def test_the_cosine_transform_is_opencvs():
    x = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    dct = effects.transform(torch.device("cpu")).numpy()
    assert np.abs(dct @ x @ dct.T - cv2.dct(x)).max() < 1e-5


def test_effects_are_as_strong_as_they_are_said_to_be(stencils, alone, monkeypatch):
    """Drift of 0.15, noise of 0.5 to 8 grey levels, bars as a quarter of the overlays, JPEG's qualities 25 to 90."""
    given = {}

    def recorded(name, result):
        monkeypatch.setattr(effects, name, lambda *args: given.update({name: args}) or result(*args))

    recorded("drift", lambda frames, *_: frames)
    recorded("noise", lambda frames, *_: frames)
    recorded("compress", lambda frames, *_: frames)
    recorded("overlay", lambda frames, flow, *_: (frames, flow))
    alone(*SHARES)
    seeded(1, stencils)(batch(400, (16, 32)))
    for rates in given["drift"][2:]:
        assert rates.mean().item() == pytest.approx(0, abs=0.03) and rates.std().item() == pytest.approx(0.15, rel=0.15)
    deviation = 255 * given["noise"][1]
    assert 0.5 <= deviation.min() < 0.6 and 6.5 < deviation.max() <= 8.001
    assert 25 <= given["compress"][1].min() < 27 and 88 < given["compress"][1].max() <= 90
    *_, fill, rim, opacity = given["overlay"]
    bars = (fill == 0).all(1)
    assert bars.float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert (opacity[bars] == 1).all() and (rim[bars] == 0).all() and opacity.min() >= 0.4 and rim.max() <= 2


def test_compression_changes_the_target_as_its_neighbours(stencils, alone):
    alone("COMPRESSION")
    sample = batch()
    sample = sample._replace(imgt=sample.img0, img1=sample.img0)
    done = seeded(1, stencils)(sample)
    assert torch.equal(done.imgt, done.img0) and not torch.equal(done.imgt, sample.imgt)
    assert torch.equal(done.flow, sample.flow)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_seed_means_the_same_effects_on_the_gpu(stencils, alone):
    alone("DRIFT", "OVERLAY", "COMPRESSION")  # noise itself differs
    here = seeded(1, stencils)(batch())
    there = seeded(1, to_device(stencils, torch.device("cuda")))(Sample(*(x.cuda() for x in batch())))
    for a, b in zip(here, there):
        assert (a - b.cpu()).abs().median() < 1e-4
