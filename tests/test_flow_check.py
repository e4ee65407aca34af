"""What labels of flow are judged by: consistency, what leaves the frame, colours."""

from types import SimpleNamespace

import cv2
import numpy as np
import torch

from utils import flow_check, flow_report


def test_unknown_flow_is_black_and_not_said_to_leave_the_frame():
    label = torch.zeros(1, 4, 32, 32)
    label[..., :8], label[..., 31] = torch.nan, 40
    frames = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    teacher = SimpleNamespace(estimate=lambda img0, img1: torch.zeros(len(img0), 2, 32, 32))
    score, row = flow_report.judge(teacher, frames, label)
    assert dict(zip(flow_report.SCORES, score))["leave %"] == 100 / 32
    for colours in row[3:5]:
        assert not colours[..., :8].any() and colours[..., 8:31].eq(1).all()


def test_a_shift_there_and_back_is_consistent_and_another_is_not():
    there = torch.tensor([4.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 20)
    assert flow_check.consistent(there, -there).all()
    # |w + w'|^2 = d^2 against 0.01 * (17 + |w'|^2) + 0.5: about 0.9 for d near 0.9.
    near, far = -there + torch.tensor([0.8, 0]).view(1, 2, 1, 1), -there + torch.tensor([1.0, 0]).view(1, 2, 1, 1)
    assert flow_check.consistent(there, near).all() and not flow_check.consistent(there, far).any()


def test_pixels_inside_are_those_whose_flow_ends_in_the_frame():
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).repeat(1, 1, 10, 20)
    flow[0, 0, 5, 5] = torch.nan
    inside = flow_check.inside(flow)[0, 0]
    assert inside.sum() == 8 * 17 - 1 and inside[2:, :17].sum() == inside.sum() and not inside[5, 5]


def test_flow_colours_are_those_of_the_hsv_circle():
    angles = np.arange(0, 360, 7.5)
    flow = torch.tensor(
        np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))])[None, :, None], dtype=torch.float32
    )
    for strength in (0, 0.25, 1):
        hsv = np.stack([angles / 2, np.full_like(angles, strength), np.ones_like(angles)], -1)[None].astype(np.float32)
        hsv[..., 0] *= 2  # OpenCV's float pictures count hue in degrees
        expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        got = flow_check.flow_colours(8 * strength * flow, 8)[0].movedim(0, -1).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-4)
    assert (flow_check.flow_colours(torch.full((1, 2, 2, 2), torch.nan), 8) == 0).all()
