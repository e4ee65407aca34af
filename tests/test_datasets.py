"""Vimeo90K as it lies on the disk: what is read is what was written, and what is wrong with it is named."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.transforms import Augment
from datasets.vimeo90k import Vimeo90K, find_flow, read_list
from utils.io import write_flow, write_image

HEIGHT, WIDTH = 48, 64


def write_set(root, names=("00001/0001", "00001/0002", "00002/0001"), flow=".flo", size=(HEIGHT, WIDTH)):
    """A set of random pictures and flow in steps of 1/64 pixel, which every format holds exactly."""
    rng = np.random.default_rng(0)
    for name in names:
        for k in (1, 2, 3):
            image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            write_image(root / "sequences" / name / f"im{k}.png", image)
        for k in (0, 1) if flow else ():
            field = (rng.integers(-640, 640, (*size, 2)) / 64).astype(np.float32)
            write_flow(root / "flow" / name / f"flow_t{k}{flow}", field)
    (root / "tri_trainlist.txt").write_text("\n".join(names) + "\n\n")
    return root


@pytest.mark.parametrize("ending", [".flo", ".png", ".pfm"])
def test_a_sample_holds_the_frames_and_the_flow_of_any_format(tmp_path, ending):
    from utils.io import read_flow, read_image

    data = Vimeo90K(write_set(tmp_path, flow=ending), read_list(tmp_path))
    assert len(data) == 3
    sample = data[1]
    for name, frame in zip(("im1", "im2", "im3"), (sample.img0, sample.imgt, sample.img1)):
        image = read_image(tmp_path / "sequences/00001/0002" / f"{name}.png")
        np.testing.assert_array_equal((frame * 255).round().byte().permute(1, 2, 0), image)
    for name, pair in (("flow_t0", sample.flow[:2]), ("flow_t1", sample.flow[2:])):
        field = read_flow(tmp_path / "flow/00001/0002" / f"{name}{ending}")
        np.testing.assert_array_equal(pair.permute(1, 2, 0), field)
    assert sample.t == 0.5


def test_a_set_without_flow_gives_nan(tmp_path):
    data = Vimeo90K(write_set(tmp_path, flow=None), read_list(tmp_path))
    assert data[0].flow.isnan().all() and data[0].flow.shape == (4, HEIGHT, WIDTH)


def test_batches_mix_and_come_the_same_from_spawned_workers(tmp_path):
    data = Vimeo90K(write_set(tmp_path), read_list(tmp_path), Augment(32, seed=3))
    keys = [[(0, 5), (1, 5)], [(2, 5), (0, 6)]]
    here = list(DataLoader(data, batch_sampler=keys))
    there = list(DataLoader(data, batch_sampler=keys, num_workers=2, multiprocessing_context="spawn"))
    for a, b in zip(here, there):
        assert a.img0.shape == (2, 3, 32, 32) and a.t.shape == (2,) and a.flow.shape == (2, 4, 32, 32)
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not torch.equal(here[0].img0[0], here[1].img0[1])  # sample 0 in another epoch


def test_without_augmentation_odd_frames_are_cropped_to_what_the_network_takes(tmp_path):
    data = Vimeo90K(write_set(tmp_path, size=(50, 70)), read_list(tmp_path))
    assert data[0].img0.shape == (3, 48, 64) and data[0].flow.shape == (4, 48, 64)


def wrong(name):
    """What a user may have, by name: a change to a good set, and what the one line must say."""

    def cut_frame(root):
        path = root / "sequences/00001/0001/im2.png"
        path.write_bytes(path.read_bytes()[:-40])

    def other_size(root):
        write_image(root / "sequences/00001/0001/im3.png", np.zeros((32, 32, 3), np.uint8))

    def other_flow(root):
        write_flow(root / "flow/00001/0001/flow_t1.flo", np.zeros((32, 32, 2), np.float32))

    def cut_flow(root):
        path = root / "flow/00001/0001/flow_t0.flo"
        path.write_bytes(path.read_bytes()[:-8])

    return {
        "no set": (lambda root: root.rename(root.with_name("gone")), "no such folder"),
        "no list": (lambda root: (root / "tri_trainlist.txt").unlink(), "tri_trainlist.txt: no such list"),
        "empty list": (lambda root: (root / "tri_trainlist.txt").write_text("\n\n"), "the list is empty"),
        "cut list": (
            lambda root: (root / "tri_trainlist.txt").write_text("00001/0001\n00001/00"),
            "line 2: '00001/00'",
        ),
        "no frame": (lambda root: (root / "sequences/00001/0001/im2.png").unlink(), "im2.png: no such file"),
        "cut frame": (cut_frame, "im2.png: the picture is cut short"),
        "other size": (other_size, "im3.png: 32x32, but the triplet's first frame is 64x48"),
        "no flow": (lambda root: (root / "flow/00001/0001/flow_t1.flo").unlink(), "flow_t1: no teacher flow"),
        "cut flow": (cut_flow, "flow_t0.flo: a flow of 64x48"),
        "other flow": (other_flow, "flow_t1.flo: 32x32, but the triplet's first frame is 64x48"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["no set", "no list", "empty list", "cut list", "no frame", "cut frame", "other size"]
    + ["no flow", "cut flow", "other flow"],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, name):
    root = write_set(tmp_path / "set")
    spoil, message = wrong(name)
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        Vimeo90K(root, read_list(root), flow=True)[0]
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_flow_is_found_in_the_format_that_is_there(tmp_path):
    write_flow(tmp_path / "flow_t0.pfm", np.zeros((4, 4, 2), np.float32))
    assert find_flow(tmp_path / "flow_t0") == tmp_path / "flow_t0.pfm"
