import errno
import math
import os
import signal
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F

from datasets import synthetic
from datasets.scenes import (
    Layer,
    Motion,
    chart,
    flow_of,
    frame_of,
    from_layer,
    homographies,
    pixels,
    to_layer,
    view_at,
)
from datasets.stencils import INNER, STEPS, Cutouts, drawn_stencils, signed_distance
from datasets.synthetic import Material, Synthetic, photo_patches
from models.layers import warp
from utils import cli, flow_files, io

SIZE = (64, 96)


@pytest.fixture(scope="module")
def material():
    windows = photo_patches(side=192)
    return Material(windows, torch.ones(len(windows)), drawn_stencils(60))


@pytest.fixture(scope="module")
def tiny(material):
    """Material for scenes that are drawn by the thousand and only measured."""
    return material._replace(patches=material.patches[:2, :8, :8], odds=torch.ones(2))


def times(scene, *taus):
    return torch.tensor([taus] * len(scene.layers[0].gain))


def frame_at(scene, t):
    return frame_of(scene, view_at(scene, times(scene, t)))[:, 0]


def flow_at(scene, t):
    return flow_of(scene, view_at(scene, times(scene, t)))[:, 0]


def motion(n=1, **changes):
    """No motion, except what is given."""
    flat, pairs = torch.zeros(n), torch.zeros(n, 2)
    return Motion(pairs, flat, flat, pairs, pairs, flat)._replace(**{k: torch.tensor(v) for k, v in changes.items()})


def still(scene, **changes):
    """The scene without motion, except that of its camera."""
    layers = tuple(layer._replace(motion=motion(len(layer.gain)), waves=None) for layer in scene.layers)
    return scene._replace(layers=layers, camera=motion(len(scene.layers[0].gain), **changes))


def object_layer(texture, mask, radius, **changes):
    """An object in the middle whose shape, a mask (H, H), would fill INNER on either side at `radius`."""
    stencil = torch.from_numpy(signed_distance(mask, 160))[None]
    place = chart(torch.zeros(1, 2), torch.zeros(1), torch.full((1, 2), radius / (2 * INNER)))
    sharp = torch.tensor([radius / (INNER * 160 * STEPS * 0.25)])
    return Layer(texture, place, torch.ones(1, 3), motion(**changes), None, stencil, place, sharp)


def disc(side=320):
    return cv2.circle(np.zeros((side, side), np.uint8), (side // 2,) * 2, round(INNER * side), 255, -1)


def test_what_goes_to_the_layers_comes_back(material):
    scene = Synthetic(material, SIZE, speed=8, seed=1).scenes(4)
    assert any(layer.waves for layer in scene.layers) and len(scene.layers) > 2
    p = pixels(SIZE, torch.device("cpu"))
    taus = times(scene, 0.0, 0.3, 1.0)
    for layer, matrix in zip(scene.layers, homographies(scene, taus)):
        tau = taus[: len(matrix)]
        assert (from_layer(layer, matrix, tau, to_layer(layer, matrix, tau, p)) - p).abs().max() < 5e-3


def test_without_motion_frames_are_equal_and_flow_is_zero(material):
    scene = still(Synthetic(material, SIZE, seed=2).scenes(3))
    assert torch.allclose(frame_at(scene, 0.0), frame_at(scene, 1.0), atol=1e-5)
    assert flow_at(scene, 0.4).abs().max() < 1e-4


def test_a_shifted_photograph_has_the_flow_of_the_shift(material):
    scene = still(Synthetic(material, SIZE, layers=0, seed=3).scenes(1), shift=[[8.0, -4.0]])
    flow = flow_at(scene, 0.25)
    expected = torch.tensor([-2.0, 1.0, 6.0, -3.0]).view(1, 4, 1, 1)  # t->0 goes a quarter back, t->1 the rest
    assert (flow - expected).abs().max() < 1e-4
    # By whole pixels the second frame is the first one, moved.
    first, second = frame_at(scene, 0.0), frame_at(scene, 1.0)
    assert torch.allclose(second[..., :-4, 8:], first[..., 4:, :-8], atol=1e-4)


def test_rotation_and_zoom_about_a_moving_centre_have_the_flow_of_the_formula(material):
    pivot, shift, angle, zoom, t = np.array([12.0, -5.0]), np.array([20.0, 10.0]), 0.4, 0.2, 0.3
    scene = Synthetic(material, SIZE, layers=0, seed=3).scenes(1)
    scene = still(scene, pivot=[pivot.tolist()], shift=[shift.tolist()], rotation=[angle], zoom=[zoom])

    def similarity(tau):  # of complex numbers, which turn and zoom by a product
        factor = np.exp((zoom + 1j * angle) * (tau - 0.5))
        centre = complex(*pivot)
        return factor, centre - factor * centre + complex(*shift) * (tau - 0.5)

    p = pixels(SIZE, torch.device("cpu")).double().numpy()
    p = p[0] + 1j * p[1]
    factor, offset = similarity(t)
    q = (p - offset) / factor
    ends = [factor * q + offset - p for factor, offset in (similarity(0), similarity(1))]
    expected = np.stack([ends[0].real, ends[0].imag, ends[1].real, ends[1].imag]).reshape(4, *SIZE)
    assert np.abs(flow_at(scene, t)[0].numpy() - expected).max() < 1e-3


def test_flow_leads_to_the_same_colour_where_nothing_is_hidden(material):
    scene = Synthetic(material, SIZE, speed=3, seed=4).scenes(8)
    flow, frame = flow_at(scene, 0.4), frame_at(scene, 0.4)
    for end, part in ((0.0, flow[:, :2]), (1.0, flow[:, 2:])):
        error = (warp(frame_at(scene, end), part) - frame).abs().mean(1)
        assert error.median() < 0.005  # the rest is occlusion, borders, and a photograph resampled twice
        assert (error > 0.1).float().mean() < 0.1


def test_flow_is_that_of_the_layer_in_front(material):
    scene = still(Synthetic(material, SIZE, layers=0, seed=5).scenes(1))
    front = object_layer(scene.layers[0].texture, disc(), 12.0, shift=[[10.0, 0.0]])
    flow = flow_at(scene._replace(layers=(*scene.layers, front)), 0.5)[0, 2]
    assert flow[32, 48] == pytest.approx(5, abs=1e-3)  # inside the disc, t->1 is half of its way
    assert flow[4, 4] == pytest.approx(0, abs=1e-3)  # the background rests
    assert (flow > 2.5).float().sum() == pytest.approx(math.pi * 12**2, rel=0.05)


def test_an_object_cut_out_of_a_photograph_moves_with_its_own_pixels_and_its_flow(material):
    side = 60
    photo = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, side, side), np.uint8))
    mask = np.zeros((side, side), np.uint8)
    mask[10:50, 20:40] = 1
    scene = still(Synthetic(material, SIZE, layers=0, seed=5).scenes(1))
    # At this radius the cut-out has the size of the photograph that it is from, pixel for pixel.
    front = object_layer(photo, mask, INNER * side, shift=[[16.0, -8.0]])
    scene = scene._replace(layers=(*scene.layers, front))
    rows, columns = slice(2 + 12, 2 + 48), slice(18 + 22, 18 + 38)  # well within the mask, in the frame at rest
    pixel = photo[0, :, 12:48, 22:38] / 255
    for t, x, y in ((0.0, -8, 4), (0.5, 0, 0), (1.0, 8, -4)):
        moved = slice(rows.start + y, rows.stop + y), slice(columns.start + x, columns.stop + x)
        assert torch.allclose(frame_at(scene, t)[0][(slice(None), *moved)], pixel, atol=1e-3)
    flow = flow_at(scene, 0.5)[0]
    assert (flow[:, rows, columns] - torch.tensor([-8.0, 4, 8, -4]).view(4, 1, 1)).abs().max() < 1e-3
    assert int((flow[2] > 4).sum()) == pytest.approx(40 * 20, rel=0.03)


def test_cutouts_are_among_the_objects(material):
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(1, 32, 32, 3)
    cut = Cutouts(red, torch.from_numpy(signed_distance(disc(64), 32))[None])
    grey = Material(torch.full((1, 64, 64, 3), 128, dtype=torch.uint8), torch.ones(1), material.stencils, cut)
    source = Synthetic(grey, (32, 32), seed=0)
    frames = torch.cat([source.batch(4).imgt for _ in range(10)])
    seen = ((frames[:, 0] > 0.4) & (frames[:, 2] < 0.05)).flatten(1).any(1)
    assert 0.2 < seen.float().mean() < 0.9


def test_windows_are_drawn_as_often_as_their_odds_say(material):
    windows = torch.stack([torch.full((32, 32, 3), value, dtype=torch.uint8) for value in (0, 200, 255)])
    odds = torch.tensor([0.2, 0.8, 0.0])
    scene = Synthetic(Material(windows, odds, material.stencils), (16, 16), layers=0).scenes(1000)
    values = scene.layers[0].texture[:, 0, 0, 0]
    assert (values == 0).float().mean() == pytest.approx(0.2, abs=0.04) and not (values == 255).any()


def test_motion_has_the_asked_median_and_a_heavy_tail(tiny):
    scene = Synthetic(tiny, (256, 256), layers=0, speed=4, seed=6).scenes(2000)
    length = scene.layers[0].motion.shift.norm(dim=-1)
    assert (length == 0).float().mean() == pytest.approx(0.3, abs=0.04)  # a share of the backgrounds rests
    length = length[length > 0]
    assert length.median() == pytest.approx(4, rel=0.1)
    assert length.quantile(0.99) > 40 and length.max() <= 128


def test_a_third_of_the_layers_tilts_and_a_third_speeds_up_or_slows_down(tiny):
    layer = Synthetic(tiny, (256, 256), layers=0, seed=6).scenes(2000).layers[0].motion
    moving = layer.shift.norm(dim=-1) > 0
    assert (layer.perspective != 0).all(1)[moving].float().mean() == pytest.approx(0.3, abs=0.04)
    assert not layer.perspective[~moving].any() and layer.perspective.abs().max() <= 0.15 / 256 + 1e-9
    assert (layer.acceleration != 0).float().mean() == pytest.approx(0.3, abs=0.04)
    assert 0.35 < layer.acceleration.abs().max() <= 0.4


def test_any_time_is_nearly_any(tiny):
    t = Synthetic(tiny, (16, 16), layers=0, seed=6).batch(500, any_time=True).t
    assert 0.05 <= t.min() < 0.07 and 0.93 < t.max() <= 0.95 and t.mean().item() == pytest.approx(0.5, abs=0.05)


def test_thin_shapes_are_drawn_large_and_solid_ones_of_all_sizes(tiny):
    source = Synthetic(tiny, (100, 100), seed=6)
    for thin, least, most in ((True, 30, 90), (False, 6, 48)):
        source.thin = torch.full_like(source.thin, thin)
        layer = source._object(2000)
        radius = layer.sharpness * INNER * layer.stencil.shape[1] * STEPS  # over the softness, 0.2 to 1.5 pixels
        assert radius.min() > least / 1.5 - 0.01 and radius.max() < most / 0.2 + 0.01
        assert radius.log().mean().exp() == pytest.approx((least * most) ** 0.5 / (0.2 * 1.5) ** 0.5, rel=0.1)


def test_flow_of_large_crops_reaches_beyond_sixty_pixels(tiny):
    scene = Synthetic(tiny, (224, 224), layers=0, seed=6).scenes(4000)
    tau, p = times(scene, 0.0, 1.0), 200 * torch.rand(2, 5) - 100
    layer, matrix = scene.layers[0], homographies(scene, tau)[0]
    q = to_layer(layer, matrix[:, :1], tau[:, :1], p)
    start, end = from_layer(layer, matrix, tau, q.expand(-1, 2, -1, -1)).unbind(1)
    length = (end - start).norm(dim=1).flatten()
    assert length.median() < 8 and length.quantile(0.99) > 60


def test_same_seed_same_scenes_and_another_seed_others(material):
    one, same, other = (Synthetic(material, SIZE, blur=0.5, seed=seed).batch(4, any_time=True) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(one, same))
    assert not torch.equal(one.imgt, other.imgt)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_seed_means_the_same_scenes_on_the_gpu(material):
    here = Synthetic(material, SIZE, blur=0.5, seed=7).batch(4, any_time=True)
    there = Synthetic(material.to(torch.device("cuda")), SIZE, blur=0.5, seed=7).batch(4, any_time=True)
    for a, b in zip(here, there):
        assert (a - b.cpu()).abs().median() < 1e-4


def test_a_batch_is_a_sample_of_any_times(material):
    sample = Synthetic(material, SIZE, seed=9).batch(5, any_time=True)
    assert sample.imgt.shape == (5, 3, *SIZE) and sample.flow.shape == (5, 4, *SIZE)
    assert sample.imgt.min() >= 0 and sample.imgt.max() <= 1
    assert sample.flow.isfinite().all()
    assert len(set(sample.t.tolist())) == 5 and 0 < sample.t.min() and sample.t.max() < 1


def test_nine_frames_at_any_times(material):
    frames, flow = Synthetic(material, SIZE, seed=10).frames(2, [k / 8 for k in range(9)])
    assert frames.shape == (2, 9, 3, *SIZE) and flow.shape == (2, 9, 4, *SIZE)
    assert flow[:, 0, :2].abs().max() < 1e-2 and flow[:, 8, 2:].abs().max() < 1e-2


def test_motion_blur_is_a_mean_along_the_motion_around_the_frame_whose_flow_it_has(material, monkeypatch):
    source = Synthetic(material, SIZE, layers=0, blur=1.0, seed=3)
    scene = still(source.scenes(1), shift=[[50.0, 0.0]])
    monkeypatch.setattr(source, "scenes", lambda n: scene)
    monkeypatch.setattr(synthetic, "SHUTTER", (0.2, 0.2))  # 10 pixels, by 5 frames 2 pixels apart
    blurred, sharp = source.batch(1), frame_at(scene, 0.5)
    assert (blurred.flow - torch.tensor([-25.0, 0, 25, 0]).view(1, 4, 1, 1)).abs().max() < 1e-3
    expected = sum(sharp[..., 4 + k : -4 + k or None] for k in (-4, -2, 0, 2, 4)) / 5
    assert torch.allclose(blurred.imgt[..., 4:-4], expected, atol=1e-4)
    assert not torch.allclose(blurred.imgt, sharp, atol=1e-2)


def test_blur_comes_to_its_share(material, monkeypatch):
    source, counts = Synthetic(material, (16, 16), layers=1, blur=0.25), []
    samples = source._samples

    def counted(n, any_time, blur):
        counts.append(n * blur)
        return samples(n, any_time, blur)

    monkeypatch.setattr(source, "_samples", counted)
    assert sum(len(source.batch(10).t) for _ in range(20)) == 200
    assert sum(counts) == pytest.approx(50, abs=20)


def test_windows_cover_the_photograph(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    io.write_image(tmp_path / "a.png", photo)
    windows = photo_patches([tmp_path / "a.png"], side=64).numpy()
    assert windows.shape == (6, 64, 64, 3)
    assert np.array_equal(windows[0], photo[:64, :64]) and np.array_equal(windows[-1], photo[-64:, -64:])


def test_a_small_photograph_is_enlarged(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    io.write_image(tmp_path / "a.png", photo)
    windows = photo_patches([tmp_path / "a.png"], side=64)
    expected = F.interpolate(io.to_float(photo)[None], scale_factor=3.2, mode="bicubic", antialias=True)[0].clamp(0, 1)
    assert np.abs(io.to_uint8(expected)[:64, :64].astype(int) - windows[0].numpy()).mean() < 1


def test_a_large_photograph_is_halved_as_long_as_it_holds_a_patch(tmp_path, monkeypatch):
    photo = np.random.default_rng(0).integers(0, 256, (256, 400, 3), dtype=np.uint8)
    io.write_image(tmp_path / "a.png", photo)
    quarter = photo.reshape(64, 4, 100, 4, 3).mean((1, 3))
    for most, shape in ((256 * 400, (28, 64)), (128 * 200, (8, 64)), (64 * 100, (2, 64)), (1, (2, 64))):
        monkeypatch.setattr(synthetic, "MOST_PIXELS", most)
        windows = photo_patches([tmp_path / "a.png"], side=64).numpy()
        assert windows.shape == (*shape, 64, 3)
    assert np.abs(windows - np.stack([quarter[:, :64], quarter[:, -64:]])).max() <= 1


def test_more_photographs_than_there_is_memory_for_are_refused(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        io.write_image(path, np.zeros((64, 128, 3), np.uint8))
    monkeypatch.setattr(synthetic, "MOST_BYTES", 6 * 64 * 64 * 3)
    assert len(photo_patches(paths[:3], side=64)) == 6
    with pytest.raises(ValueError, match="3.png: only the 3 photographs before this one, of 4, fit .* GB; give fewer"):
        photo_patches(paths, side=64)


def test_an_interrupt_waits_while_photographs_are_read(typed, monkeypatch):
    read = []

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        read.append(True)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(skimage.data, synthetic.PHOTOGRAPHS[0], interrupted)
    done = typed(lambda _: synthetic.skimage_photographs(), cli.Parser(""))
    assert done == (2, "", "script.py: interrupted\n") and read


def test_material_holds_photographs_and_textures_in_their_shares(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "TEXTURES", 4)
    io.write_image(tmp_path / "a.png", np.full((64, 64, 3), 7, np.uint8))
    made = synthetic.material([tmp_path / "a.png"], procedural=0.3, side=64)
    assert made.patches.shape == (5, 64, 64, 3) and torch.all(made.patches[0] == 7)
    assert torch.allclose(made.odds, torch.tensor([0.7, *4 * [0.075]])) and made.cutouts is None


def test_segmentations_without_their_photographs_are_refused():
    with pytest.raises(ValueError, match="--masks m: .* give --images too"):
        synthetic.material(masks="m")


def test_photographs_in_which_nothing_is_seen_to_move_are_refused(material, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "TRIES", 10)
    black = material._replace(patches=torch.zeros(1, 64, 64, 3, dtype=torch.uint8), odds=torch.ones(1))
    with pytest.raises(ValueError, match="no motion is visible in these photographs; give others, or a larger --sp"):
        synthetic.write_vimeo90k(tmp_path, Synthetic(black, (32, 32)), train=1, test=1)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_what_was_drawn_each_frame_and_flow_under_its_name(material, tmp_path):
    synthetic.write_vimeo90k(tmp_path, Synthetic(material, SIZE, seed=5), train=1, test=1)
    frames, flow = Synthetic(material, SIZE, seed=5).frames(1, (0.0, 0.5, 1.0))
    assert all((frames[0, a] - frames[0, b]).abs().mean() > 0.01 for a, b in ((0, 1), (1, 2)))
    for number, frame in enumerate(frames[0], start=1):
        written = io.read_image(tmp_path / "sequences/00001/0001" / f"im{number}.png")
        assert np.abs(written - 255 * frame.movedim(0, -1).numpy()).max() < 0.501
    for end in (0, 1):
        written = flow_files.read_flow(tmp_path / f"flow/00001/0001/flow_t{end}.flo")
        np.testing.assert_array_equal(written, flow[0, 1, 2 * end : 2 * end + 2].movedim(0, -1))


def test_the_written_set_has_the_layout_of_vimeo90k(tmp_path):
    out = tmp_path / "set"
    for left in ("sequences/00001/0002/.im3.here.7.png", "flow/00001/0001/.flow_t1.here.7.flo"):  # by a kill
        (out / left).parent.mkdir(parents=True)
        (out / left).touch()
    synthetic.main(synthetic.parser().parse_args(f"--out {out} --train 2 --test 1 --width 64 --height 48".split()))
    assert (out / "tri_trainlist.txt").read_text().split() == ["00001/0001", "00001/0002"]
    assert (out / "tri_testlist.txt").read_text().split() == ["00001/0003"]
    frames = [io.read_image(out / "sequences/00001/0003" / f"im{n}.png") for n in (1, 2, 3)]
    assert all(frame.shape == (48, 64, 3) for frame in frames)
    for end, frame in ((0, frames[0]), (1, frames[2])):
        flow = flow_files.read_flow(out / f"flow/00001/0003/flow_t{end}.flo")
        assert flow.shape == (48, 64, 2)
        warped = warp(io.to_float(frame)[None], torch.from_numpy(flow).movedim(-1, 0)[None])[0]
        assert (warped - io.to_float(frames[1])).abs().median() < 0.02
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("name", ["tri_trainlist.txt", "tri_testlist.txt"])
def test_a_set_of_which_a_list_found_no_room_is_not_taken_for_a_whole_one(tmp_path, monkeypatch, name):
    args = synthetic.parser().parse_args(f"--out {tmp_path} --train 1 --test 1 --width 64 --height 48".split())

    def full(path, data, usual=io.write_bytes):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        usual(path, data)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(io, "write_bytes", full)
        synthetic.main(args)
    synthetic.main(args)
    assert all((tmp_path / part).read_text() for part in ("tri_trainlist.txt", "tri_testlist.txt"))


def test_a_set_that_another_run_has_just_written_is_not_written_over(tmp_path, monkeypatch):
    @contextmanager
    def after_another(folder):
        (folder / "tri_trainlist.txt").write_text("00001/0001")
        yield

    monkeypatch.setattr(io, "only_run", after_another)
    args = synthetic.parser().parse_args(f"--out {tmp_path} --train 1 --test 1 --width 64 --height 48".split())
    with pytest.raises(ValueError, match="a set is there; give --overwrite to replace it"):
        synthetic.main(args)
