import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets import synthetic
from datasets.synthetic import BLOB, Synthetic, flow_of, frame_of, from_layers, photo_windows, to_layers, view_at
from models.layers import warp
from utils import io

SIZE = (64, 96)


@pytest.fixture(scope="module")
def windows():
    return photo_windows()


def taus(scene, t):
    return torch.full((len(scene.shown),), t)


def frame_at(scene, t):
    return frame_of(scene, view_at(scene, taus(scene, t)))


def flow_at(scene, t):
    return flow_of(scene, view_at(scene, taus(scene, t)))


def still(motion):
    return motion._replace(**{name: torch.zeros_like(value) for name, value in motion._asdict().items()})


def test_what_goes_to_the_layers_comes_back(windows):
    scene = Synthetic(windows, SIZE, speed=8, seed=1).scenes(4)
    for t in (0.0, 0.3, 1.0):
        back = from_layers(scene, to_layers(scene, taus(scene, t)), taus(scene, t))
        assert (back - synthetic.pixels(SIZE, torch.device("cpu"))).abs().max() < 5e-3


def test_without_motion_frames_are_equal_and_flow_is_zero(windows):
    scene = Synthetic(windows, SIZE, seed=2).scenes(2)
    scene = scene._replace(motion=still(scene.motion), camera=still(scene.camera))
    scene = scene._replace(amplitude=torch.zeros_like(scene.amplitude))
    assert torch.allclose(frame_at(scene, 0.0), frame_at(scene, 1.0), atol=1e-5)
    assert flow_at(scene, 0.4).abs().max() < 1e-4


def test_a_shifted_photograph_has_the_flow_of_the_shift(windows):
    scene = Synthetic(windows, SIZE, layers=0, seed=3).scenes(1)
    motion = still(scene.motion)._replace(shift=torch.tensor([[[8.0, -4.0]]]))
    scene = scene._replace(motion=motion, camera=still(scene.camera), amplitude=torch.zeros_like(scene.amplitude))
    flow = flow_at(scene, 0.25)
    expected = torch.tensor([-2.0, 1.0, 6.0, -3.0]).view(1, 4, 1, 1)  # t->0 goes a quarter back, t->1 the rest
    assert (flow - expected).abs().max() < 1e-4
    # By whole pixels the second frame is the first one, moved.
    first, second = frame_at(scene, 0.0), frame_at(scene, 1.0)
    assert torch.allclose(second[..., :-4, 8:], first[..., 4:, :-8], atol=1e-4)


def test_flow_leads_to_the_same_colour_where_nothing_is_hidden(windows):
    scene = Synthetic(windows, SIZE, speed=3, seed=4).scenes(8)
    flow, frame = flow_at(scene, 0.4), frame_at(scene, 0.4)
    for end, part in ((0.0, flow[:, :2]), (1.0, flow[:, 2:])):
        error = (warp(frame_at(scene, end), part) - frame).abs().mean(1)
        assert error.median() < 0.005  # the rest is occlusion, borders, and a photograph resampled twice
        assert (error > 0.1).float().mean() < 0.1


def test_flow_is_that_of_the_layer_in_front(windows):
    scene = Synthetic(windows, SIZE, layers=1, seed=5).scenes(1)
    motion = still(scene.motion)._replace(shift=torch.tensor([[[0.0, 0.0], [10.0, 0.0]]]))
    scene = scene._replace(
        motion=motion,
        camera=still(scene.camera),
        amplitude=torch.zeros_like(scene.amplitude),
        shown=torch.ones(1, 2),
        kind=torch.full((1, 2), BLOB),
        centre=torch.zeros(1, 2, 2),
        radius=torch.full((1, 2, 2), 12.0),
        harmonics=torch.zeros_like(scene.harmonics),
    )
    flow = flow_at(scene, 0.5)[0, 2]
    assert flow[32, 48] == pytest.approx(5, abs=1e-3)  # inside the disc, t->1 is half of its way
    assert flow[4, 4] == pytest.approx(0, abs=1e-3)  # the background rests
    assert (flow > 2.5).float().sum() == pytest.approx(np.pi * 12**2, rel=0.05)


def test_motion_has_the_asked_median_and_a_heavy_tail(windows):
    source = Synthetic(windows, (256, 256), speed=4, seed=6)
    length = source.scenes(400).motion.shift.norm(dim=-1).flatten()
    assert length.median() == pytest.approx(4, rel=0.1)
    assert length.quantile(0.99) > 30
    assert length.max() <= 128


def test_same_seed_same_scenes_and_another_seed_others(windows):
    one, same, other = (Synthetic(windows, SIZE, seed=seed).batch(2, any_time=True) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(one, same))
    assert not torch.equal(one.imgt, other.imgt)


def test_a_batch_is_a_sample_of_any_times(windows):
    sample = Synthetic(windows, SIZE, seed=9).batch(5, any_time=True)
    assert sample.imgt.shape == (5, 3, *SIZE) and sample.flow.shape == (5, 4, *SIZE)
    assert sample.imgt.min() >= 0 and sample.imgt.max() <= 1
    assert sample.flow.isfinite().all()
    assert len(set(sample.t.tolist())) == 5 and 0 < sample.t.min() and sample.t.max() < 1


def test_nine_frames_at_any_times(windows):
    frames, flow = Synthetic(windows, SIZE, seed=10).frames(2, [k / 8 for k in range(9)])
    assert frames.shape == (2, 9, 3, *SIZE) and flow.shape == (2, 9, 4, *SIZE)
    assert flow[:, 0, :2].abs().max() < 1e-2 and flow[:, 8, 2:].abs().max() < 1e-2


def test_windows_cover_the_photograph(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    io.write_image(tmp_path / "a.png", photo)
    windows = photo_windows([tmp_path / "a.png"], side=64).numpy()
    assert windows.shape == (6, 64, 64, 3)
    assert np.array_equal(windows[0], photo[:64, :64]) and np.array_equal(windows[-1], photo[-64:, -64:])


def test_a_small_photograph_is_enlarged(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    io.write_image(tmp_path / "a.png", photo)
    windows = photo_windows([tmp_path / "a.png"], side=64)
    expected = F.interpolate(io.to_float(photo)[None], scale_factor=3.2, mode="bicubic", antialias=True)[0].clamp(0, 1)
    assert np.abs(io.to_uint8(expected)[:64, :64].astype(int) - windows[0].numpy()).mean() < 1


def test_the_written_set_has_the_layout_of_vimeo90k(tmp_path):
    out = tmp_path / "set"
    synthetic.main(synthetic.parser().parse_args(f"--out {out} --train 2 --test 1 --width 64 --height 48".split()))
    assert (out / "tri_trainlist.txt").read_text().split() == ["00001/0001", "00001/0002"]
    assert (out / "tri_testlist.txt").read_text().split() == ["00001/0003"]
    frames = [io.read_image(out / "sequences/00001/0003" / f"im{n}.png") for n in (1, 2, 3)]
    assert all(frame.shape == (48, 64, 3) for frame in frames)
    flow = io.read_flow(out / "flow/00001/0003/flow_t0.flo")
    assert flow.shape == (48, 64, 2)
    warped = warp(io.to_float(frames[0])[None], torch.from_numpy(flow).movedim(-1, 0)[None])[0]
    assert (warped - io.to_float(frames[1])).abs().median() < 0.02
