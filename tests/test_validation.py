"""A score is the mean over frames, whatever the sizes; the pictures show what was asked for."""

import numpy as np
import pytest
import torch

import models
from datasets import Sample
from utils import distributed
from utils.flow_check import flow_colours
from utils.metrics import psnr
from utils.validation import Validation

CPU = torch.device("cpu")


def sample(seed, height, width, targets=None):
    rng = torch.Generator().manual_seed(seed)
    img0, img1, *imgt = torch.rand(2 + (targets or 1), 3, height, width, generator=rng)
    t = torch.arange(1, targets + 1) / (targets + 1) if targets else torch.tensor(0.5)
    return Sample(img0, torch.stack(imgt) if targets else imgt[0], img1, t, torch.full((4, height, width), torch.nan))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.build("IFRNet_S")


def test_the_score_is_the_mean_over_all_frames(model):
    data = [sample(0, 32, 48), sample(1, 48, 32), sample(2, 32, 32, targets=3)]
    expected = []
    with torch.no_grad():
        for one in data:
            for t, imgt in zip(one.t.flatten(), one.imgt.view(-1, *one.img0.shape)):
                expected.append(psnr(model(one.img0[None], one.img1[None], t).imgt, imgt[None]).item())
    assert Validation(data, CPU)(model)["psnr"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert len(expected) == 5


def test_a_frame_that_is_exact_counts_finitely(model):
    """Between equal frames the average is the truth."""
    other, still = sample(0, 32, 48), sample(1, 32, 48)
    still = still._replace(img1=still.img0, imgt=still.img0)
    average = psnr((other.img0 + other.img1)[None] / 2, other.imgt[None]).item()
    assert Validation([still, other], CPU)(model)["averaging"] == pytest.approx((100 + average) / 2, abs=1e-4)


def test_a_score_stands_beside_that_of_the_average(model):
    data = [sample(0, 32, 48, targets=2)]
    average = torch.stack([(2 * data[0].img0 + data[0].img1) / 3, (data[0].img0 + 2 * data[0].img1) / 3])
    expected = psnr(average, data[0].imgt).mean().item()
    assert Validation(data, CPU)(model)["averaging"] == pytest.approx(expected, abs=1e-4)


def test_the_pictures_are_six_side_by_side(model):
    data = [sample(k, 32, 48) for k in range(5)] + [sample(9, 32, 48, targets=7)]
    pictures = Validation(data, CPU).pictures(model, count=6)
    assert len(pictures) == 6
    for index, picture in enumerate(pictures.values()):
        assert picture.shape == (32, 6 * 48, 3) and picture.dtype == np.uint8
        truth = data[index].imgt if index < 5 else data[5].imgt[3]
        np.testing.assert_array_equal(picture[:, 96:144], (truth * 255).round().byte().permute(1, 2, 0))
    assert len(Validation(data[:2], CPU).pictures(model)) == 2


def test_batchnorm_is_judged_by_its_running_statistics_and_leaves_them_alone():
    """A run calls it in the middle of training."""
    torch.manual_seed(0)
    network, data = models.build("IFRNet_S", "gelu+bn"), [sample(0, 32, 48), sample(1, 32, 48)]
    network(data[0].img0[None], data[0].img1[None], 0.5)  # the statistics of one step
    before = {name: value.clone() for name, value in network.state_dict().items()}
    validation = Validation(data, CPU)
    expected = validation(network.eval())["psnr"], validation.pictures(network.eval(), 1)["validation/0"]
    assert validation(network.train())["psnr"] == pytest.approx(expected[0], abs=1e-6)
    np.testing.assert_array_equal(validation.pictures(network.train(), 1)["validation/0"], expected[1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_picture_shows_the_error_four_times_and_both_flows_by_one_measure(model):
    one = sample(3, 32, 48)
    picture = torch.from_numpy(Validation([one], CPU).pictures(model, 1)["validation/0"]).permute(2, 0, 1) / 255
    with torch.no_grad():
        out = model(one.img0[None], one.img1[None], 0.5)
    _, prediction, _, error, *flows = picture.split(48, 2)
    torch.testing.assert_close(prediction, out.imgt[0], rtol=0, atol=0.51 / 255)
    expected = (4 * (out.imgt[0] - one.imgt).abs()).clamp(max=1)
    torch.testing.assert_close(error, expected, rtol=0, atol=0.51 / 255)
    side_by_side = torch.cat(out.flows[0].split(2, 1), 3)
    both = flow_colours(side_by_side, side_by_side.norm(dim=1).max().item())[0].split(48, 2)
    for shown, wanted in zip(flows, both):
        torch.testing.assert_close(shown, wanted, rtol=0, atol=0.51 / 255)


def test_every_sample_is_scored_once_and_the_shares_are_added_up(model, monkeypatch):
    data = [sample(k, 32, 48) for k in range(3)]
    sums, whole = [], Validation(data, CPU).averaging
    monkeypatch.setattr(distributed, "sums", lambda values: sums.append(values) or values)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "shard", lambda indices, rank=rank: list(indices[rank::2]))
        Validation(data, CPU).averaging  # noqa: B018
    assert [each["frames"] for each in sums] == [2, 1]
    assert sum(each["psnr"] for each in sums) / 3 == pytest.approx(whole, abs=1e-5)


def test_nothing_to_validate_on_is_said():
    with pytest.raises(ValueError, match="the validation list is empty"):
        Validation([], CPU)
