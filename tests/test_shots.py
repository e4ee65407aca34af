"""How neighbouring frames relate: cuts, repeats and leaps in time, on made-up pictures."""

import numpy as np
import pytest
from conftest import sliding

from utils import shots


def test_motion_alone_is_no_cut():
    assert not shots.find_breaks(sliding(40, height=96, width=128, step=6)).any()


def test_what_moves_in_a_small_part_of_a_still_picture_is_no_repeat():
    frames = np.stack([sliding(1, 360, 640)[0]] * 12)
    for i, frame in enumerate(frames):
        frame[100:124, 100 + 4 * i : 124 + 4 * i] = 255 * np.indices((24, 24)).sum(0)[..., None] // 8 % 2
    assert not shots.find_breaks(frames).any()


def test_a_repeat_that_compression_changed_is_told_by_the_motion_around_it():
    frames = sliding(12, 96, 128, step=4).astype(int)
    frames[6] = frames[5]
    frames[6, 40:56, 40:56] += 6 * (-1) ** np.indices((16, 16)).sum(0)[..., None]
    assert np.flatnonzero(shots.find_breaks(frames.clip(0, 255).astype(np.uint8))).tolist() == [5]


@pytest.mark.parametrize("first", [0, 1])
def test_every_second_frame_repeated_is_found_from_the_first_to_the_last(monkeypatch, first):
    """12 frames a second stored as 24, where compression leaves a tenth of the change."""
    changes = [0.7 if k % 2 == first else 7.0 for k in range(30)]
    monkeypatch.setattr(shots, "change", lambda one, other: (changes[one], 99))
    monkeypatch.setattr(shots, "is_cut", lambda one, other: False)
    assert np.flatnonzero(shots.find_breaks(range(31))).tolist() == list(range(first, 30, 2))


@pytest.mark.filterwarnings("error")
def test_two_frames_alone_are_judged_by_themselves():
    one, other = sliding(2, 96, 128)
    assert shots.find_breaks([one, other]).tolist() == [False] and shots.find_breaks([one, one]).tolist() == [True]
    assert shots.find_breaks([one]).shape == (0,)


def test_a_picture_that_fades_by_one_grey_level_is_no_repeat():
    picture = sliding(1, 96, 128)[0] // 2
    noisy = picture.copy()
    noisy[::8, ::8] += 1
    assert shots.is_repeat(picture, noisy) and not shots.is_repeat(picture, picture + 1)


def test_a_cut_is_one_whichever_frame_comes_first():
    """What comes into the picture is explained in one direction only."""
    empty, full = (shots.thumbnail(frame) for frame in sliding(2, 96, 128, step=4))
    empty = np.roll(empty, 30, 1)
    empty[:, :30] = empty.mean()
    there, back = shots.unexplained(empty, full), shots.unexplained(full, empty)
    assert there == back


def test_a_faint_picture_after_an_even_one_is_a_cut():
    even = np.full((144, 256, 3), 60, np.uint8)
    faint = (60 + 4 * (-1) ** (np.indices((9, 16)).sum(0))).repeat(16, 0).repeat(16, 1)
    faint = np.repeat(faint[..., None], 3, 2).astype(np.uint8)
    assert shots.is_cut(even, faint) and shots.is_cut(faint, even) and not shots.is_cut(even, even)


def framed(frame, height, width):
    """A frame in the middle of a black one."""
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - frame.shape[0]) // 2, (width - frame.shape[1]) // 2
    canvas[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return canvas


@pytest.mark.parametrize(("height", "width"), [(144, 512), (200, 256), (200, 512), (576, 256)])
def test_black_bars_hide_no_cut(height, width):
    first, second = ([framed(frame, height, width) for frame in sliding(3, 144, 256, seed=seed)] for seed in (1, 2))
    assert shots.is_cut(first[2], second[0]) and not shots.is_cut(*first[:2])


@pytest.mark.parametrize("step", [4, 30])
def test_a_light_that_moves_in_the_dark_is_no_cut(step):
    """What is around it are no bars."""
    lamps = np.zeros((3, 180, 320, 3), np.uint8)
    for k, lamp in enumerate(lamps):
        lamp[84:96, 100 + step * k : 112 + step * k] = 200
    assert not shots.is_cut(*lamps[:2]) and not shots.is_cut(*lamps[1:])


@pytest.mark.parametrize("step", [4, 6])
def test_a_page_of_text_that_scrolls_is_no_cut(step):
    """Lines 24 pixels apart, of letters 4 pixels wide: a quarter of a thumbnail's size shows neither."""
    page = np.full((480, 640, 3), 250, np.uint8)
    letters = np.random.default_rng(0).random((20, 150)) < 0.6
    for line, row in zip(range(8, 480, 24), letters):
        page[line : line + 10, 20:620] = np.where(row.repeat(4), 30, 250)[:, None]
    assert not shots.is_cut(page[:360], page[step : 360 + step])


@pytest.mark.parametrize("target", [0, 255])
def test_a_fade_has_no_cuts_until_its_end(target):
    frames = sliding(25, 144, 256)
    faded = [(frame * (1 - k / 24) + target * k / 24).round().astype(np.uint8) for k, frame in enumerate(frames)]
    assert not any(map(shots.is_cut, faded, faded[1:]))
    assert shots.is_cut(faded[0], faded[-1]) and shots.is_cut(faded[-1], frames[0])


def test_frames_that_come_too_soon_are_leaps_as_late_ones_are():
    assert shots.leaps([0, 40, 80, 90, 130, 170, 210, 250]) == [2]
    assert shots.leaps([0, 40, 80, 180, 220, 260]) == [2] and shots.leaps([0, None, 80]) == []
    assert shots.leaps([0, 0, 0, 0, 5]) == []  # times that say nothing


@pytest.mark.parametrize("length", [3, 4, 5, 12])
def test_a_cut_in_the_dark_and_in_a_short_clip_is_found(length):
    first, second = sliding(length, 96, 128, seed=1), sliding(length, 96, 128, seed=2)
    for cut in range(1, length):
        frames = np.concatenate([first[:cut], second[cut:]]) // 4
        assert np.flatnonzero(shots.find_breaks(frames)).tolist() == [cut - 1]


@pytest.mark.parametrize("unit, rate", [(100, 24), (100, 40), (100, 60), (1000, 240), (1000, 480), (1000, 600)])
def test_a_steady_rate_rounded_to_a_containers_units_has_no_leaps(unit, rate):
    times = [round(i * unit / rate) for i in range(60)]
    assert shots.leaps(times) == []
    assert shots.leaps(times[:30] + times[33:]) == [29]


@pytest.mark.parametrize("unit", [1000, 90000, 600])
def test_film_as_a_display_shows_it_becomes_even(unit):
    begin = [2.5 * k + k % 2 / 2 for k in range(40)]  # in fields
    begin += [begin[-1] + 2 * k for k in range(1, 20)]  # of a camera
    times = [round(time * unit * 1001 / 60000) for time in begin]
    found = shots.evened(times)
    assert found[40:] == times[40:] and shots.leaps(times[:40]) == []
    assert all(abs(time - 2.5 * k * unit * 1001 / 60000) <= 1 for k, time in enumerate(found[:40]))


def test_times_that_are_uneven_by_chance_stay():
    for times in (
        [0, 50, 83, 133, 167, 217, 250],
        [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28],
        list(range(0, 800, 40)),
        np.cumsum(np.random.default_rng(0).choice([33, 50], 4000)).tolist(),  # a game, 20 or 30 frames a second
    ):
        assert shots.evened(times) == times


def test_a_frame_that_comes_at_once_behind_film_stays_behind_it():
    """A recording of a screen holds what else is drawn there."""
    times = [k * 5 // 2 * 1500 for k in range(40)]
    for late in (1, 700, 800):
        found = shots.evened([*times, times[-1] + late])
        assert all(a < b for a, b in zip(found, found[1:])) and found[20] == 20 * 3750 and found[-1] == times[-1] + late
