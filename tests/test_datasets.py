"""Vimeo90K, GoPro and clips on the disk: what is read is what was written, and what is wrong with it is named."""

import hashlib
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import train_gopro
from datasets import clips, gopro
from datasets.clips import Windows
from datasets.transforms import Augment, finish
from datasets.vimeo90k import Vimeo90K, find_flow, read_list
from utils import epochs
from utils.flow_files import read_flow, write_flow
from utils.io import read_image, write_image

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
    here, there = ([finish(batch, torch.device("cpu")) for batch in batches] for batches in (here, there))
    for a, b in zip(here, there):
        assert a.img0.shape == (2, 3, 32, 32) and a.t.shape == (2,) and a.flow.shape == (2, 4, 32, 32)
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not torch.equal(here[0].img0[0], here[1].img0[1])  # sample 0 in another epoch


def test_without_augmentation_odd_frames_are_cropped_to_what_the_network_takes(tmp_path):
    data = Vimeo90K(write_set(tmp_path, size=(50, 70)), read_list(tmp_path))
    assert data[0].img0.shape == (3, 48, 64) and data[0].flow.shape == (4, 48, 64)


def cut_frame(root):
    path = root / "sequences/00001/0001/im2.png"
    path.write_bytes(path.read_bytes()[:-40])


def other_size(root):
    write_image(root / "sequences/00001/0001/im3.png", np.zeros((32, 64, 3), np.uint8))


def other_flow(root):
    write_flow(root / "flow/00001/0001/flow_t1.flo", np.zeros((48, 32, 2), np.float32))


def cut_flow(root):
    path = root / "flow/00001/0001/flow_t0.flo"
    path.write_bytes(path.read_bytes()[:-8])


WRONG = {  # what a user may have, by name: a change to a good set, and what the one line must say
    "no set": (lambda root: root.rename(root.with_name("gone")), "no such folder"),
    "no list": (lambda root: (root / "tri_trainlist.txt").unlink(), "tri_trainlist.txt: no such list"),
    "empty list": (lambda root: (root / "tri_trainlist.txt").write_text("\n\n"), "the list is empty"),
    "cut list": (
        lambda root: (root / "tri_trainlist.txt").write_text("00001/0001\n00001/00"),
        "line 2: '00001/00'",
    ),
    "list cut to a folder": (
        lambda root: (root / "tri_trainlist.txt").write_text("00001/0001\n00001"),
        "line 2: '00001'",
    ),
    "no frame": (lambda root: (root / "sequences/00001/0001/im2.png").unlink(), "im2.png: no such file"),
    "cut frame": (cut_frame, "im2.png: the picture is cut short"),
    "other size": (other_size, "im3.png: 64x32, but the triplet's first frame is 64x48"),
    "no flow": (lambda root: (root / "flow/00001/0001/flow_t1.flo").unlink(), "flow_t1: no teacher flow"),
    "cut flow": (cut_flow, "flow_t0.flo: a flow of 64x48"),
    "other flow": (
        other_flow,
        "flow_t1.flo: 32x48, but the triplet's first frame is 64x48; make it again with generate_flow.py",
    ),
}


@pytest.mark.parametrize("spoil, message", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_in_one_line(tmp_path, spoil, message):
    root = write_set(tmp_path / "set")
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        Vimeo90K(root, read_list(root), flow=True)[0]
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("augment", "size"), [(None, "8x8 are too small"), (Augment(32), "8x8 hold no crop of 32x32")])
def test_a_triplet_that_is_too_small_is_named(tmp_path, augment, size):
    root = write_set(tmp_path / "set")
    write_set(root, ["00001/0002"], size=(8, 8))
    data = Vimeo90K(root, ["00001/0001", "00001/0002"], augment)
    assert data[0]
    with pytest.raises(ValueError, match=f"sequences/00001/0002: frames of {size}"):
        data[1]


def test_of_a_listed_triplet_that_is_not_there_the_frames_are_missed_and_not_the_flow(tmp_path):
    root = write_set(tmp_path / "set")
    with pytest.raises(FileNotFoundError, match="sequences/00009/0001: listed, but not there"):
        Vimeo90K(root, ["00009/0001"], flow=True)[0]


def test_flow_is_found_in_the_format_that_is_there(tmp_path):
    write_flow(tmp_path / "flow_t0.pfm", np.zeros((4, 4, 2), np.float32))
    assert find_flow(tmp_path / "flow_t0") == tmp_path / "flow_t0.pfm"


def test_a_list_whose_triplets_are_looked_for_later_is_read_without_them(tmp_path):
    root = write_set(tmp_path / "set", flow=None)
    shutil.rmtree(root / "sequences/00002/0001")
    assert read_list(root, check=False) == ["00001/0001", "00001/0002", "00002/0001"]


def test_a_list_may_lie_outside_of_the_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_set(tmp_path / "set", flow=None)
    (tmp_path / "mine.txt").write_text("00001/0002\n")
    assert read_list(root, "mine.txt") == read_list(root, tmp_path / "mine.txt") == ["00001/0002"]
    assert len(read_list(root, "tri_trainlist.txt")) == 3


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    path = write_set(tmp_path) / "tri_trainlist.txt"
    names = read_list(tmp_path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf") and read_list(tmp_path) == names


# GoPro and one's own clips


def write_gopro(root, inner="train", frames=19, size=(40, 48), videos=gopro.TRAIN_VIDEOS):
    """Videos of pictures whose grey tells which frame of which video they are."""
    for v, video in enumerate(videos):
        for k in range(frames):
            write_image(root / inner / video / f"{k + 1:06}.png", np.full((*size, 3), 9 * v + k, np.uint8))
    return root


@pytest.mark.parametrize("inner", ["train", ""])
def test_gopro_windows_of_both_layouts_are_nine_frames_eight_apart(tmp_path, inner):
    windows = gopro.windows(write_gopro(tmp_path, inner, videos=gopro.TRAIN_VIDEOS[:3]), gopro.TRAIN_VIDEOS[:3])
    assert len(windows) == 3 * 2  # frames 0..8 and 8..16; 16..24 is incomplete
    sample = Windows(windows)[3]
    grey = (torch.stack([sample.img0, *sample.imgt, sample.img1])[:, 0, 0, 0] * 255).round()
    assert grey.tolist() == [9 + 8 + k for k in range(9)]
    np.testing.assert_allclose(sample.t, np.arange(1, 8) / 8)
    assert sample.flow.isnan().all() and sample.imgt.shape == (7, 3, 32, 48)


def test_a_gap_before_the_last_frame_of_a_gopro_window_is_one_within_it(tmp_path):
    root, video = write_gopro(tmp_path, frames=34, videos=gopro.TRAIN_VIDEOS[:1]), gopro.TRAIN_VIDEOS[0]
    (root / "train" / video / "000017.png").unlink()
    with pytest.warns(UserWarning, match="frames are missing after 000016.png"):
        windows = gopro.windows(root, [video])
    assert [window.paths[0].stem for window in windows] == ["000001", "000018", "000026"]


def test_gopro_windows_in_which_frames_are_missing_are_left_out(tmp_path):
    root, video = write_gopro(tmp_path, frames=34, videos=gopro.TRAIN_VIDEOS[:1]), gopro.TRAIN_VIDEOS[0]
    (root / "train" / video / "000018.png").unlink()  # at the border of two windows, and now within the second
    with pytest.warns(UserWarning, match="frames are missing after 000017.png"):
        windows = gopro.windows(root, [video])
    assert [window.paths[0].stem for window in windows] == ["000001", "000009", "000026"]
    for path in (root / "train" / video).glob("*5.png"):
        path.unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=f"{video}: 30 frames; a window takes 9 successive"):
        gopro.windows(root, [video])


def test_gopro_split_is_frozen_and_has_no_video_on_both_sides():
    for videos, digest in ((gopro.TRAIN_VIDEOS, "90b88ed357b6a1be"), (gopro.TEST_VIDEOS, "b1dac2bb73fb4eef")):
        assert hashlib.sha256("\n".join(sorted(videos)).encode()).hexdigest().startswith(digest), "the paper's names"
    assert len(set(gopro.TRAIN_VIDEOS)) == 22 and len(set(gopro.TEST_VIDEOS)) == 11
    assert not set(gopro.TRAIN_VIDEOS) & set(gopro.TEST_VIDEOS)


def test_the_papers_iterations_are_those_of_its_training_videos_whatever_is_validated_on(tmp_path):
    write_gopro(tmp_path, frames=9, size=(16, 16))
    write_gopro(tmp_path, "test", frames=9, size=(16, 16), videos=gopro.TEST_VIDEOS)
    (tmp_path / "names.txt").write_text("\n".join(gopro.TEST_VIDEOS))
    for options, held in (([], 1), (["--val_list", str(tmp_path / "names.txt")], 11)):
        args = train_gopro.parser().parse_args(["--data", str(tmp_path), *options])
        train, val, paper = train_gopro.windows(args)
        assert (len(train) + len(val), len(val), paper) == (22 if held == 1 else 33, held, 600 * 22 // 8)


def test_gopro_validates_on_the_512_pixels_in_the_middle(tmp_path, monkeypatch):
    handed, videos = [], gopro.TRAIN_VIDEOS[:2]
    write_gopro(tmp_path, frames=9, size=(516, 530), videos=videos)
    monkeypatch.setattr(gopro, "windows", partial(gopro.windows, videos=videos))
    monkeypatch.setattr(epochs, "train", lambda *args: handed.extend(args))
    train_gopro.main(train_gopro.parser().parse_args(["--data", str(tmp_path), "--device", "cpu"]))
    _, _, _, train_set, val_set, *_ = handed
    assert val_set[0].img0.shape == (3, 512, 512) and val_set[0].imgt.shape == (7, 3, 512, 512)
    assert train_set[0, 0].frames.shape == (9, 224, 224, 3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: root.rename(root.with_name("gone")), "no such folder; GoPro"),
        (lambda root: shutil.rmtree(root / "train" / gopro.TRAIN_VIDEOS[1]), f"no video {gopro.TRAIN_VIDEOS[1]}"),
        (lambda root: [p.unlink() for p in (root / "train" / gopro.TRAIN_VIDEOS[1]).glob("*")], "no pictures"),
        (lambda root: [p.unlink() for p in (root / "train" / gopro.TRAIN_VIDEOS[1]).glob("*1*")], "a window takes 9"),
        (
            lambda root: write_image(root / "train" / gopro.TRAIN_VIDEOS[0] / "000003.png", np.zeros((8, 8, 3), "u1")),
            "000003.png: 8x8, but .*000001.png is 48x40",
        ),
    ],
)
def test_what_is_wrong_with_gopro_is_named(tmp_path, spoil, message):
    root = write_gopro(tmp_path / "set", videos=gopro.TRAIN_VIDEOS[:2])
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Windows(gopro.windows(root, gopro.TRAIN_VIDEOS[:2]))[0]


def write_clips(folder, names, frames=30, size=(32, 48)):
    """Frame folders of a texture that moves a pixel a frame: no cut, nothing repeated."""
    for seed, name in enumerate(names):
        texture = np.random.default_rng(seed).integers(0, 256, (size[0] // 4, (size[1] + frames) // 4 + 1, 3))
        texture = texture.repeat(4, 0).repeat(4, 1).astype(np.uint8)
        for k in range(frames):
            write_image(folder / name / f"{k:04}.png", texture[:, k : k + size[1]])
    return folder


def test_clips_to_validate_on_are_other_clips(tmp_path, own_cache):
    folder = write_clips(tmp_path / "clips", ["a", "b", "c"])
    train, val = clips.split(folder, 3)
    assert {w.clip.name for w in train} == {"a", "b"} and {w.clip.name for w in val} == {"c"}
    assert len(train) == 2 * 28 and [w.start for w in val] == list(range(0, 28, 2))
    train, val = clips.split(folder, 9, stride=2, held=["a"])
    assert {w.clip.name for w in train} == {"b", "c"} and {w.clip.name for w in val} == {"a"}
    assert Windows(train)[0].imgt.shape == (7, 3, 32, 48)
    with pytest.raises(ValueError, match="too few windows"):
        clips.split(folder, 3, held=["a", "b", "c"])


def test_one_clip_alone_is_split_in_time_without_a_shared_frame(tmp_path, own_cache):
    train, val = clips.split(write_clips(tmp_path / "clips", ["only"], frames=60), 3)
    last = max(w.start + 2 for w in train)
    assert val and last < min(w.start for w in val) and len(train) > 40


def test_small_clips_are_left_out_and_named_and_too_few_are_an_error(tmp_path, own_cache):
    folder = write_clips(tmp_path / "clips", ["a", "b"])
    write_clips(folder, ["tiny"], size=(16, 16))
    with pytest.warns(UserWarning, match="left out, smaller than 32x32: tiny"):
        train, val = clips.split(folder, 3, least=32)
    assert {w.clip.name for w in train + val} == {"a", "b"}
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no clip named tiny to validate on, 32x32 or larg"):
        clips.split(folder, 3, least=32, held=["a", "tiny"])
    with pytest.raises(ValueError, match="no clip named zebra"):
        clips.split(folder, 3, held=["zebra"])
    with pytest.raises(ValueError, match="too few windows of 40 frames.*; add clips, or give a smaller --crop"):
        clips.split(folder, 40)
