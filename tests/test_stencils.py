import cv2
import numpy as np
import pytest
import scipy.io
import torch

from datasets import stencils
from datasets.stencils import INNER, KINDS, OUTLINE, STEPS, cutouts, drawn_stencils, signed_distance
from utils import io


def disc(side, radius, middle=None):
    y, x = np.mgrid[:side, :side]
    cy, cx = middle or ((side - 1) / 2,) * 2
    return np.hypot(y - cy, x - cx) < radius


@pytest.mark.parametrize("drawn, side", [(160, 80), (80, 80), (40, 80)])
def test_a_discs_stencil_is_the_distance_from_its_outline(drawn, side):
    stencil = signed_distance(disc(drawn, 0.3 * drawn), side)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    expected = 0.3 * side - np.hypot(y, x)
    near = np.abs(expected) < 12
    found = (stencil.astype(float) - OUTLINE) / STEPS
    assert np.abs(found - expected)[near].max() < 0.7 * max(side / drawn, 1)
    assert abs((found - expected)[near].mean()) < 0.15 * max(side / drawn, 1)


def test_drawn_stencils_are_a_function_of_the_seed():
    one, same, other = (drawn_stencils(12, 64, seed) for seed in (0, 0, 1))
    assert torch.equal(one.distance, same.distance) and not torch.equal(one.distance, other.distance)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_draws_some_but_not_all_of_its_canvas(name):
    for seed in range(10):
        canvas = np.zeros((320, 320), np.uint8)
        KINDS[name](np.random.default_rng(seed), canvas)
        share = (canvas > 0).mean()
        assert 0.001 < share < 0.7, seed
        if name in stencils.THIN:  # none of it is far from the outline
            assert cv2.distanceTransform(canvas, cv2.DIST_L2, 5).max() <= 18


def test_stencils_are_found_by_kind():
    drawn = drawn_stencils(60, 32)
    numbers = drawn.numbers("ring", "text")
    assert 0 < len(numbers) < 60
    assert {list(KINDS)[kind] for kind in drawn.kind[numbers]} == {"ring", "text"}


@pytest.fixture
def photographs(tmp_path):
    """Two photographs with a disc each, of a colour of its own, and a bright ground with a dark band on the border."""
    for number, colour in enumerate(((200, 30, 30), (30, 200, 30))):
        picture = np.full((90, 120, 3), 240, np.uint8)
        picture[:, :30] = 20
        picture[disc(120, 20, (40, 75))[:90]] = colour
        io.write_image(tmp_path / f"photos/{number}.png", picture)
    return sorted((tmp_path / "photos").iterdir())


def labels_of(photo):
    picture = io.read_image(photo).astype(int).sum(-1)
    return np.searchsorted(np.unique(picture), picture)


def write_mat(path, labels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    truth = np.empty((1, len(labels)), object)
    for i, label in enumerate(labels):
        truth[0, i] = {"Segmentation": np.uint16(label + 1), "Boundaries": np.uint8(label > 0)}
    scipy.io.savemat(path, {"groundTruth": truth}, **options)


@pytest.mark.parametrize("kind", ["mat", "png"])
def test_objects_are_cut_out_of_photographs_and_backgrounds_are_not(photographs, tmp_path, kind):
    masks = tmp_path / "masks"
    for photo in photographs:
        labels = labels_of(photo)
        if kind == "mat":
            write_mat(masks / "train" / f"{photo.stem}.mat", [labels])
        else:
            io.write_image(masks / f"{photo.stem}.png", np.uint8(labels)[..., None].repeat(3, -1))
    cut = cutouts(photographs, masks, 64)
    assert cut.picture.shape == (2, 64, 64, 3) and cut.distance.shape == (2, 64, 64)
    for picture, distance, colour in zip(cut.picture, cut.distance, ((200, 30, 30), (30, 200, 30))):
        inside = distance > OUTLINE + 2 * STEPS
        assert inside[32, 32] and torch.all((picture[inside].int() - torch.tensor(colour)).abs() < 3)
        # The disc has the size that drawn stencils have, up to whole pixels.
        assert (distance > OUTLINE).sum().item() ** 0.5 == pytest.approx(np.pi**0.5 * INNER * 64, rel=0.1)


def test_every_annotator_is_listened_to(photographs, tmp_path):
    labels = labels_of(photographs[0])
    write_mat(tmp_path / "masks/0.mat", [labels, np.zeros_like(labels), labels])
    assert len(cutouts(photographs[:1], tmp_path / "masks", 32).picture) == 2


def test_segments_may_have_any_numbers(photographs, tmp_path):
    masks, labels = tmp_path / "masks", labels_of(photographs[0])
    write_mat(masks / "0.mat", [labels])
    expected = cutouts(photographs[:1], masks, 32)
    for numbers in (np.array([-5, 70_000, 3]), np.array([0.5, 1e9, -2.0])):
        truth = np.empty((1, 1), object)
        truth[0, 0] = {"Segmentation": numbers[labels]}
        scipy.io.savemat(masks / "0.mat", {"groundTruth": truth})
        assert all(map(torch.equal, cutouts(photographs[:1], masks, 32), expected))
    colours = np.uint8([[255, 255, 250], [3, 90, 200], [0, 0, 1]])
    (masks / "0.mat").unlink()
    io.write_image(masks / "0.png", colours[labels])
    assert all(map(torch.equal, cutouts(photographs[:1], masks, 32), expected))
    for numbers in (np.uint16([26001, 26002, 26003]), np.uint8([7, 8, 6])):  # such as Cityscapes has them
        assert cv2.imwrite(str(masks / "0.png"), numbers[labels])
        assert all(map(torch.equal, cutouts(photographs[:1], masks, 32), expected))


def test_segmentations_that_do_not_fit_are_named(photographs, tmp_path):
    masks = tmp_path / "masks"
    with pytest.raises(FileNotFoundError, match="masks: no such folder"):
        cutouts(photographs, masks, 32)
    masks.mkdir()
    with pytest.raises(ValueError, match="named like one of the 2 photographs"):
        cutouts(photographs, masks, 32)
    write_mat(masks / "0.mat", [np.zeros((90, 121), int)])
    with pytest.raises(ValueError, match=r"0\.mat: a segmentation of 121x90 for .*0\.png, which is 120x90"):
        cutouts(photographs, masks, 32)
    write_mat(masks / "0.mat", [np.zeros((90, 120), int)])
    with pytest.raises(ValueError, match="no segment"):
        cutouts(photographs, masks, 32)
    write_mat(masks / "0.mat", [labels_of(photographs[0])], do_compression=True)
    whole = (masks / "0.mat").read_bytes()
    newer = whole[:124] + b"\0\2" + whole[126:]  # MATLAB 7.3
    damaged = [whole[:length] for length in (64, 126, 130, 200, len(whole) - 9)] + [whole[:200] + whole[201:]]
    for content in (b"no matrix", b"", newer, *damaged):
        (masks / "0.mat").write_bytes(content)
        with pytest.raises(ValueError, match=r"0\.mat: not a segmentation"):
            cutouts(photographs, masks, 32)
    scipy.io.savemat(masks / "0.mat", {"groundTruth": np.eye(3)})
    with pytest.raises(ValueError, match=r"0\.mat: not a segmentation"):
        cutouts(photographs, masks, 32)


def test_bsds500s_segmentations_are_read(real_data):
    photos = sorted((real_data / "bsds500" / "images" / "train").glob("*.jpg"))[:6]
    if not photos:
        pytest.skip("BSDS500 is not here")
    cut = cutouts(photos, real_data / "bsds500" / "groundTruth", 96)
    share = (cut.distance > OUTLINE).float().mean((1, 2))
    assert len(cut.picture) > 6 and share.min() > 0.01 and share.max() < 4 * INNER**2
