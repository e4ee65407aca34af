"""What an Interpolator records as CUDA graphs, and when: counted without a GPU."""

import pytest
import torch
from conftest import formula_image, formula_weights

import models
from models import interpolator, recording


class Repeated:
    """In place of a Recording where there is no GPU: calls the function again instead of replaying it."""

    made = 0

    def __init__(self, function, *_):
        self.function = function
        type(self).made += 1

    def __call__(self, *inputs):
        return list(self.function(*inputs))


@pytest.fixture
def recorded(monkeypatch):
    """An interpolator that keeps one recording, and a function that asks it for frames and checks them."""
    for name, value in (("RECORDINGS", 1), ("PATIENCE", 3), ("Recording", Repeated)):
        monkeypatch.setattr(recording, name, value)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(Repeated, "made", 0)
    network = formula_weights(models.build("IFRNet_S"))
    plain, quick = (models.Interpolator(network, "cpu", "fp32", mode="fast") for _ in range(2))
    quick.recorder = recording.Recorder()

    def ask(height, width, calls=1, times=(0.5,), scale=1):
        img0, img1 = formula_image(height, width, 1), formula_image(height, width, 2)
        expected = plain(img0, img1, times, scale)
        for _ in range(calls):
            assert torch.equal(quick(img0, img1, times, scale), expected)
        return Repeated.made

    return quick, ask


def test_what_comes_again_is_recorded_and_gives_way_to_what_comes_often(recorded):
    quick, ask = recorded
    assert ask(32, 48) == 0 and ask(32, 48) == 1 and ask(32, 48, 3) == 1
    assert ask(48, 32, 3) == 1 and ask(48, 32) == 2 and ask(48, 32, 3) == 2
    assert len(quick.recorder.recordings) == 1
    assert ask(32, 48, 3) == 2 and ask(32, 48) == 3


def test_scales_and_numbers_of_times_are_recorded_each_and_long_lists_in_parts(recorded, monkeypatch):
    monkeypatch.setattr(recording, "RECORDINGS", 8)
    _, ask = recorded
    assert ask(32, 48, 2) == 1 and ask(32, 48, 2, scale="multi") == 2 and ask(32, 48, 2, (0.2, 0.7)) == 3
    assert ask(32, 48, 2, (0.3, 0.9)) == 3  # times are inputs
    assert ask(32, 48, 2, [k / 20 for k in range(1, 19)]) == 4  # 8, 8 and 2, which is recorded already
    assert ask(32, 48, 1, torch.tensor([0.4, 0.6])) == 4
    monkeypatch.setattr(interpolator, "LARGEST", 4 * 32 * 48)
    assert ask(32, 48, 2, [k / 20 for k in range(1, 10)]) == 5  # 4, 4 and 1, which is recorded already


def test_algorithms_are_searched_for_what_comes_again_and_for_nothing_else(monkeypatch):
    monkeypatch.setattr(recording, "PATIENCE", 3)
    monkeypatch.setattr(recording, "LARGEST", 0)
    recorder, seen = recording.Recorder(), []

    def frames(x):
        for _ in range(2):
            seen.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic))
            yield x

    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    for _ in range(2):
        for _ in recorder("key", frames, torch.zeros(1, 3, 4, 4)):
            assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before
    assert seen == [(False, True)] * 2 + [(True, False)] * 2


def test_what_is_too_large_to_pay_is_not_recorded(recorded, monkeypatch):
    _, ask = recorded
    monkeypatch.setattr(recording, "LARGEST", 32 * 32)
    assert ask(32, 48, 3) == 0 and ask(32, 32, 3) == 1


def test_where_recording_fails_it_says_so_once_and_goes_on(recorded, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    _, ask = recorded
    monkeypatch.setattr(recording, "Recording", fails)
    with pytest.warns(UserWarning, match="without CUDA graphs: out of memory") as caught:
        ask(32, 48, 4)
    assert len(caught) == 1
