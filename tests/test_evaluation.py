"""What is scored and shown of single cases: the flow, the worst, numbers that are not finite, flicker."""

import numpy as np
import pytest
import torch
from scoring import frame

import models
from benchmarks import cases, evaluation, store
from utils import io

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_flow_that_is_shown_is_the_networks_also_in_strips(weights, monkeypatch):
    call = models.Interpolator(models.load(weights), "cpu", scale=0.5)
    img0, img1 = (io.to_float(frame(k, 50, 70))[None] for k in range(2))
    flow = evaluation.flow_to_first(call, img0, img1, 0.25)
    assert flow.shape == (1, 2, 50, 70)
    monkeypatch.setattr(call, "budget", lambda: 0)
    torch.testing.assert_close(evaluation.flow_to_first(call, img0, img1, 0.25), flow, atol=1e-3, rtol=1e-4)
    # Padded by hand to 64x96, the smallest multiples of 32.
    padded = [torch.nn.functional.pad(x, (13, 13, 7, 7), mode="replicate") for x in (img0, img1)]
    with torch.no_grad():
        expected = call.model(*padded, 0.25, scale=0.5).flows[0][:, :2, 7:57, 13:83]
    torch.testing.assert_close(flow, expected)


def test_the_flow_that_is_shown_of_optical_flow_leads_back_to_the_first_frame():
    wide = io.to_float(frame(0, 64, 112))[None]
    img0, img1 = wide[..., 8:104], wide[..., 4:100]  # to the right by 4 pixels
    flow = evaluation.flow_to_first(models.baselines.Dis("cpu"), img0, img1, 0.25)[..., 16:-16, 16:-16]
    assert flow[:, 0].median().item() == pytest.approx(-1, abs=0.1)
    assert flow[:, 1].median().item() == pytest.approx(0, abs=0.1)


def score_by_hand(tmp_path, call, values):
    """Cases of two targets each, at t = 1/3 and 2/3, with these PSNRs."""
    written = []
    for k in range(4):
        io.write_image(tmp_path / f"{k}.png", frame(k))
        written.append(tmp_path / f"{k}.png")
    of_each = [cases.Case(name, written[0], written[3], tuple(written[1:3]), (1 / 3, 2 / 3)) for name in values]
    scores = [store.Score("all", name, {"psnr": psnr}) for name, psnr in values.items()]
    contender = evaluation.Contender(call, evaluation.Protocol(), {"model": "average"})
    return contender, [cases.Split("all", of_each)], scores


def test_the_worst_case_is_that_with_the_worst_frame(tmp_path):
    values = {"even": [30.0, 30.0], "good": [50.0, 45.0], "uneven": [60.0, 20.0]}
    contender, splits, scores = score_by_hand(tmp_path, models.baselines.Average("cpu"), values)
    shown = evaluation.show(contender, splits, scores, tmp_path / "out")
    assert [(one["name"], one["psnr"]) for one in shown[:2]] == [("uneven", 20.0), ("even", 30.0)]
    assert shown[0]["t"] == 2 / 3 and shown[0]["why"] == "worst"
    np.testing.assert_array_equal(io.read_image(tmp_path / shown[0]["target"]), frame(2))


def test_a_picture_that_is_gone_once_it_is_to_be_shown_is_named(tmp_path):
    contender, splits, scores = score_by_hand(tmp_path, models.baselines.Average("cpu"), {"a": [30.0, 30.0]})
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match="2.png: no such file"):
        evaluation.show(contender, splits, scores, tmp_path / "out")


def test_a_score_that_is_not_finite_names_the_case_and_what_to_do(tmp_path):
    class Broken(models.baselines.Average):
        def __call__(self, img0, img1, times, scale=None):
            return torch.full((len(img0), len(times), *img0.shape[1:]), torch.nan)

    contender, (split,), _ = score_by_hand(tmp_path, Broken("cpu"), {"one": [0.0, 0.0]})
    contender = contender._replace(about={"model": "IFRNet_S", "checkpoint": "weights.pth"})
    members, scorers = [(split, split.cases[0])], {"psnr": evaluation.scorer("psnr", None, contender.call.device)}
    with pytest.raises(ValueError, match=rf"{tmp_path}/0.png: psnr is not finite; check the checkpoint, or try --prec"):
        evaluation.score_batch(contender, members, [cases.read(*members[0])], scorers, None)


def test_a_video_of_true_frames_flickers_little_and_one_in_another_order_much():
    wide = io.to_float(frame(0, 64, 128))
    img0, target, img1 = (wide[..., left : left + 96] for left in (16, 12, 8))
    stack, warp = torch.stack([img0, img1, target])[None], evaluation.scorer("warp", None, torch.device("cpu"))
    right, wrong = (warp(predicted[None, None], stack).item() for predicted in (target, img1))
    assert right < 1e-4 and wrong > 10 * right
