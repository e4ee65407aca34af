"""How far things move, and the scale that follows from it."""

import cv2
import numpy as np
import pytest

from utils import motion


def shifted(pixels: int, height: int = 256, width: int = 448) -> tuple[np.ndarray, np.ndarray]:
    """Two views of a picture of blobs: to the right, things are `pixels` further left."""
    blobs = np.random.default_rng(0).integers(0, 256, (height // 48, (width + pixels) // 48, 3), np.uint8)
    wide = cv2.resize(blobs, (width + pixels, height), interpolation=cv2.INTER_CUBIC)
    return wide[:, :width], wide[:, pixels:]


@pytest.mark.parametrize("pixels", [0, 6, 20, 60])
def test_motion_is_in_pixels_of_the_frames(pixels):
    assert motion.motion(*shifted(pixels)) == pytest.approx(pixels, rel=0.3, abs=0.5)
    upright = [image.swapaxes(0, 1) for image in shifted(pixels)]
    assert motion.motion(*map(np.ascontiguousarray, upright)) == pytest.approx(pixels, rel=0.3, abs=0.5)


@pytest.mark.parametrize(
    ("pixels", "size", "scale"),
    [(0, (256, 448), 1), (6, (256, 448), 1), (20, (256, 448), 0.5), (60, (256, 448), 0.25), (6, (256, 3840), 0.5)]
    + [(30, (256, 3840), 0.5)],
)
def test_the_scale_follows_the_motion_and_is_never_above_that_of_the_size(pixels, size, scale):
    assert motion.scale_by_motion(*shifted(pixels, *size)) == scale


def test_a_few_things_that_move_far_do_not_decide():
    first, _ = shifted(0)
    second = first.copy()
    second[:30, :60] = first[100:130, 200:260]
    assert motion.scale_by_motion(first, second) == 1


@pytest.mark.parametrize(("share", "length"), [(0.04, 0), (0.06, 25)])
def test_what_moves_counts_from_a_twentieth_of_the_frame_on(monkeypatch, share, length):
    flow = np.zeros((72, 128, 2), np.float32)
    flow.reshape(-1, 2)[: round(share * 72 * 128)] = 3, 4  # of a thumbnail of 128x72

    class Search:
        def calc(self, first, second, start):
            return flow

    monkeypatch.setattr(motion.cv2.DISOpticalFlow, "create", lambda preset: Search())
    assert motion.motion(*np.zeros((2, 360, 640, 3), np.uint8)) == pytest.approx(length)
