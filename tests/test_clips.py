import json
import os
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.utils.data import default_collate
from video_files import encode

from datasets import clips
from datasets.transforms import Augment, finish
from utils import io, shots


def moving(frames=12, height=48, width=64, seed=0, step=2):
    """A smooth random picture that slides to the left."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8, (width + frames * step) // 8 + 2, 3), dtype=np.uint8)
    wide = small.repeat(8, 0).repeat(8, 1)
    return np.stack([wide[:height, i * step : i * step + width] for i in range(frames)])


def write_folder(folder, frames):
    for number, frame in enumerate(frames):
        io.write_image(folder / f"{number}.png", frame)


def write_video(path, frames, times=None):
    """times: when frames are shown, in 25ths of a second."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for time, pixels in zip(times or range(len(frames)), frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_folder_and_a_video_of_the_same_frames_are_the_same_clip(tmp_path):
    frames = moving()
    write_folder(tmp_path / "in" / "b", frames)
    write_video(tmp_path / "in" / "a.mkv", frames)
    video, folder = clips.open_clips(tmp_path / "in", cache=tmp_path / "cache")
    assert (video.name, folder.name) == ("a.mkv", "b")
    assert np.array_equal(folder.frames[:], frames)  # in the order of numbers: 2 comes before 10
    assert np.array_equal(video.frames[:], frames)


def test_the_second_opening_reads_the_cache_and_a_changed_clip_is_decoded_anew(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mkv", moving(seed=1))
    first = clips.open_clips(tmp_path, cache=tmp_path / "cache")[0].frames[:].copy()
    decode = clips._decode
    monkeypatch.setattr(clips, "_decode", None)
    assert np.array_equal(clips.open_clips(tmp_path, cache=tmp_path / "cache")[0].frames[:], first)
    monkeypatch.setattr(clips, "_decode", decode)
    write_video(tmp_path / "a.mkv", moving(seed=2, frames=14))
    assert len(clips.open_clips(tmp_path, cache=tmp_path / "cache")[0].frames) == 14
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # what was there before is not kept: frames are large


def test_windows_hold_neither_cuts_nor_repeated_frames(tmp_path):
    frames = np.concatenate([moving(10, seed=1), moving(10, seed=2)])
    frames[5] = frames[4]
    breaks = shots.find_breaks(frames)
    assert np.flatnonzero(breaks).tolist() == [4, 9]
    found = clips.windows([clips.Clip("x", frames, breaks)], length=3)
    assert [w.start for w in found] == [0, 1, 2, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17]


def test_a_window_takes_every_stride_th_frame():
    frames = moving(10)
    clip = clips.Clip("x", frames, np.zeros(9, bool))
    found = clips.windows([clip], length=3, stride=3, step=2)
    assert [w.start for w in found] == [0, 2]
    assert np.array_equal(found[1].frames, frames[[2, 5, 8]])


def test_a_window_is_a_sample_with_all_frames_between_as_targets():
    frames = moving(5)
    dataset = clips.Windows(clips.windows([clips.Clip("x", frames, np.zeros(4, bool))], length=5))
    sample = dataset[0]
    assert np.array_equal(io.to_uint8(sample.imgt), frames[1:4])
    assert sample.t.tolist() == [0.25, 0.5, 0.75]
    assert sample.flow.isnan().all()
    raw = clips.Windows(dataset.windows, Augment(32))[0, 3]
    assert finish(default_collate([raw]), torch.device("cpu")).imgt.shape == (1, 3, 3, 32, 32)


def test_a_spawned_process_is_told_where_the_frames_are_and_gets_no_copy(tmp_path):
    write_folder(tmp_path / "in" / "a", moving())
    (clip,) = clips.open_clips(tmp_path / "in", cache=tmp_path / "cache")
    sent = pickle.dumps(clips.Windows(clips.windows([clip], 3)))
    assert len(sent) < 5_000 < clip.frames[:].nbytes
    received = pickle.loads(sent).windows
    assert len(received) == 10 and len({id(window.clip) for window in received}) == 1
    assert isinstance(received[9].frames, np.memmap) and np.array_equal(received[9].frames, clip.frames[9:])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux alone")
def test_a_clip_at_hand_is_no_open_file(tmp_path):
    write_folder(tmp_path / "in" / "a", moving())
    before = len(os.listdir("/proc/self/fd"))
    found = clips.open_clips(tmp_path / "in", cache=tmp_path / "cache")
    shape = found[0].frames[3].shape
    assert shape == (48, 64, 3) and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("listed", clips.TRAIN_LISTS)
def test_of_vimeo90k_those_of_the_training_list_are_taken(tmp_path, monkeypatch, listed):
    monkeypatch.setattr(clips, "CACHE", tmp_path / "cache")
    names = ["00001/0001", "00001/0002", "00002/0001"]
    for seed, name in enumerate(names):
        write_folder(tmp_path / "in" / "sequences" / name, moving(7, seed=seed))
    assert len({w.clip.name for part in clips.split(tmp_path / "in", 3) for w in part}) == 3
    (tmp_path / "in" / listed).write_text("00001/0001\n00002/0001\n\n")
    train, val = clips.split(tmp_path / "in", 3)
    assert {w.clip.name for w in train} == {"sequences/00001/0001"}
    assert {w.clip.name for w in val} == {"sequences/00002/0001"}
    train, val = clips.split(tmp_path / "in", 3, held=["00001/0002"])  # of the test list, by its name there
    assert len({w.clip.name for w in train}) == 2 and {w.clip.name for w in val} == {"sequences/00001/0002"}
    (tmp_path / "in" / listed).write_text("00001/0001\n00009/0009\n")
    with pytest.raises(ValueError, match=f"{listed}: 1 of its sequences are not there, such as sequences/00009"):
        clips.open_clips(tmp_path / "in")


def test_motion_alone_is_no_cut():
    assert not shots.find_breaks(moving(40, height=96, width=128, step=6)).any()


def test_what_moves_in_a_small_part_of_a_still_picture_is_no_repeat():
    frames = np.stack([moving(1, 360, 640)[0]] * 12)
    for i, frame in enumerate(frames):
        frame[100:124, 100 + 4 * i : 124 + 4 * i] = 255 * np.indices((24, 24)).sum(0)[..., None] // 8 % 2
    assert not shots.find_breaks(frames).any()


def test_a_repeat_that_compression_changed_is_told_by_the_motion_around_it():
    frames = moving(12, 96, 128, step=4).astype(int)
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
    one, other = moving(2, 96, 128)
    assert shots.find_breaks([one, other]).tolist() == [False] and shots.find_breaks([one, one]).tolist() == [True]
    assert shots.find_breaks([one]).shape == (0,)


def test_a_picture_that_fades_by_one_grey_level_is_no_repeat():
    picture = moving(1, 96, 128)[0] // 2
    noisy = picture.copy()
    noisy[::8, ::8] += 1
    assert shots.is_repeat(picture, noisy) and not shots.is_repeat(picture, picture + 1)


def test_a_cut_is_one_whichever_frame_comes_first():
    """What comes into the picture is explained in one direction only."""
    empty, full = (shots.thumbnail(frame) for frame in moving(2, 96, 128, step=4))
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
    first, second = ([framed(frame, height, width) for frame in moving(3, 144, 256, seed=seed)] for seed in (1, 2))
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
    frames = moving(25, 144, 256)
    faded = [(frame * (1 - k / 24) + target * k / 24).round().astype(np.uint8) for k, frame in enumerate(frames)]
    assert not any(map(shots.is_cut, faded, faded[1:]))
    assert shots.is_cut(faded[0], faded[-1]) and shots.is_cut(faded[-1], frames[0])


def test_frames_that_come_too_soon_are_leaps_as_late_ones_are():
    assert shots.leaps([0, 40, 80, 90, 130, 170, 210, 250]) == [2]
    assert shots.leaps([0, 40, 80, 180, 220, 260]) == [2] and shots.leaps([0, None, 80]) == []
    assert shots.leaps([0, 0, 0, 0, 5]) == []  # times that say nothing


@pytest.mark.parametrize("length", [3, 4, 5, 12])
def test_a_cut_in_the_dark_and_in_a_short_clip_is_found(length):
    first, second = moving(length, 96, 128, seed=1), moving(length, 96, 128, seed=2)
    for cut in range(1, length):
        frames = np.concatenate([first[:cut], second[cut:]]) // 4
        assert np.flatnonzero(shots.find_breaks(frames)).tolist() == [cut - 1]


def test_real_clips_have_the_cuts_and_repeats_that_somebody_listed(real_data, tmp_path):
    listed = json.loads((real_data / "clips" / "clips_index.json").read_text())
    names = ["cotracker_pillow.mp4", "rabbit-watermelon.mp4"]
    for clip in clips.open_clips(real_data / "clips", names, longest=640, cache=tmp_path):
        about = listed[clip.name]
        missed = {*about["cut_after_frame"], *about["near_duplicate_after_frame"]} - {*np.flatnonzero(clip.breaks)}
        assert not missed and clip.breaks.sum() <= len(about["near_duplicate_after_frame"]) + 2, clip.name


def test_no_window_holds_a_leap_in_a_videos_time(tmp_path):
    """Every third frame dropped, as phones and encoders do; and a steady rate with one frame missing."""
    write_video(tmp_path / "in" / "a.mkv", moving(8), [0, 1, 3, 4, 6, 7, 9, 10])
    write_video(tmp_path / "in" / "b.mkv", moving(8), [0, 1, 2, 3, 5, 6, 7, 8])
    uneven, missing = clips.open_clips(tmp_path / "in", cache=tmp_path / "cache")
    assert np.flatnonzero(uneven.breaks).tolist() == [1, 3, 5] and np.flatnonzero(missing.breaks).tolist() == [3]
    assert not clips.windows([uneven], 3)


def test_a_container_that_tells_only_when_frames_are_decoded_holds_no_leaps(tmp_path):
    frames = moving(24, 96, 128)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (clip,) = clips.open_clips(tmp_path, cache=tmp_path / "cache")
    assert len(clip.frames) == 24 and not clip.breaks.any()


@pytest.mark.parametrize("unit, rate", [(100, 24), (100, 40), (100, 60), (1000, 240), (1000, 480), (1000, 600)])
def test_a_steady_rate_rounded_to_a_containers_units_has_no_leaps(unit, rate):
    times = [round(i * unit / rate) for i in range(60)]
    assert shots.leaps(times) == []
    assert shots.leaps(times[:30] + times[33:]) == [29]


def test_a_clip_that_gives_no_window_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "CACHE", tmp_path / "cache")
    write_video(tmp_path / "in" / "a.mkv", moving(8), [0, 1, 3, 4, 6, 7, 9, 10])
    for name in "bc":
        write_folder(tmp_path / "in" / name, moving(12))
    with pytest.warns(UserWarning, match="left out, no 3 frames, 1 apart, without .* leap in time: a.mkv"):
        train, val = clips.split(tmp_path / "in", 3)
    assert {window.clip.name for window in train + val} == {"b", "c"}


def test_a_name_as_long_as_a_disk_takes_is_kept_and_what_a_kill_left_is_not(tmp_path):
    name = "日" * 83
    write_folder(tmp_path / "in" / name, moving())
    (clip,) = clips.open_clips(tmp_path / "in", cache=tmp_path / "cache")
    assert clip.name == name and len(clip.frames) == 12
    left = tmp_path / "cache" / f".{clip.frames.path.stem}.host.1.npy"
    clip.frames.path.with_name(clip.frames.path.name.replace("frames", "breaks")).unlink()
    left.write_bytes(b"half")
    clips.open_clips(tmp_path / "in", cache=tmp_path / "cache")
    assert not left.exists()


def test_large_clips_are_halved(tmp_path):
    write_folder(tmp_path / "a", moving(3, 48, 64))
    (clip,) = clips.open_clips(tmp_path, longest=40, cache=tmp_path / "cache")
    assert clip.frames.shape == (3, 24, 32, 3)


def test_frames_written_over_in_their_folder_are_read_anew(tmp_path):
    for seed in (1, 2):
        write_folder(tmp_path / "a", moving(seed=seed))
        (clip,) = clips.open_clips(tmp_path, cache=tmp_path / "cache")
        assert np.array_equal(clip.frames[:], moving(seed=seed))


def test_hidden_files_are_no_clips_and_one_frame_has_no_windows(tmp_path):
    write_folder(tmp_path / "a", moving(3))
    write_folder(tmp_path / "cover", moving(1))
    (tmp_path / "._a.mp4").write_bytes(b"what macOS leaves on other disks")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "._1.png").write_bytes(b"the same")
    found = clips.open_clips(tmp_path, cache=tmp_path / "cache")
    assert [clip.name for clip in found] == ["a", "cover"]
    assert {window.clip.name for window in clips.windows(found, 3)} == {"a"}


def test_processes_that_come_together_decode_a_clip_once(tmp_path):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mkv", moving(40))
    work = (
        "import sys, time; from datasets import clips; decode = clips._decode\n"
        "def slow(*how):\n    print('decoded', flush=True); time.sleep(0.5); yield from decode(*how)\n"
        "clips._decode = slow; print(len(clips.open_clips(sys.argv[1], cache=sys.argv[2])[0].frames))"
    )
    command = [sys.executable, "-c", work, str(tmp_path / "in"), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = "".join(process.communicate(timeout=60)[0] for process in both).split()
    assert sorted(said) == ["40", "40", "decoded"]


def test_processes_that_come_together_on_a_disk_without_locks_take_nothing_from_each_other(tmp_path):
    write_video(tmp_path / "in" / "a.mkv", moving(40))
    work = (
        "import fcntl, sys, time; from datasets import clips; decode = clips._decode\n"
        "def unknown(*_): raise OSError(38, 'Function not implemented')\n"
        "def slow(*how):\n    for frame in decode(*how): time.sleep(float(sys.argv[3])); yield frame\n"
        "fcntl.flock = unknown; clips._decode = slow\n"
        "print(len(clips.open_clips(sys.argv[1], cache=sys.argv[2])[0].frames))"
    )
    command = [sys.executable, "-c", work, str(tmp_path / "in"), str(tmp_path / "cache")]
    both = [subprocess.Popen([*command, wait], stdout=subprocess.PIPE, text=True, cwd=ROOT) for wait in ("0.1", "0.12")]
    assert [process.communicate(timeout=60)[0].split() for process in both] == [["40"], ["40"]]


def test_clips_to_validate_on_are_never_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "CACHE", tmp_path / "cache")
    for name in "ab":
        write_folder(tmp_path / "in" / name, moving(12))
    train, val = clips.split(tmp_path / "in", 3, held=["a"])
    assert {window.clip.name for window in train} == {"b"} and {window.clip.name for window in val} == {"a"}
    with pytest.raises(ValueError, match="too few windows"):
        clips.split(tmp_path / "in", 3, held=["a", "b"])
    write_folder(tmp_path / "in" / "c", moving(12, 24, 24))
    with (
        pytest.warns(UserWarning, match="left out, smaller than 32x32: c"),
        pytest.raises(ValueError, match="in: no clip named c to validate on, 32x32 or larger"),
    ):
        clips.split(tmp_path / "in", 3, least=32, held=["a", "c"])


def write_undecodable(path):
    encode(path, moving(3), codec="ffv1")
    path.write_bytes(path.read_bytes().replace(b"V_FFV1", b"V_XXX1"))


def write_sound(path):
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: None, "no videos"),
        (lambda folder: (folder / "a.mp4").write_bytes(b"no video at all"), "a.mp4: cannot be decoded"),
        (lambda folder: write_folder(folder / "a", [*moving(2), *moving(1, 24, 64)]), "frames of different sizes"),
        (lambda folder: folder.rmdir(), "in: no such folder of clips"),
        (lambda folder: write_sound(folder / "a.mp4"), "a.mp4: no video in this file"),
        (lambda folder: write_undecodable(folder / "a.mkv"), "a.mkv: this FFmpeg has no decoder for it"),
    ],
)
def test_a_folder_without_whole_clips_is_named(tmp_path, make, message):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        clips.open_clips(tmp_path / "in", cache=tmp_path / "cache")


def test_a_clip_that_was_asked_for_and_is_not_there_is_named(tmp_path):
    write_folder(tmp_path / "a", moving(3))
    with pytest.raises(ValueError, match="no clip named b"):
        clips.open_clips(tmp_path, only=["a", "b"], cache=tmp_path / "cache")


def test_real_septuplets_are_clips(real_data, tmp_path):
    found = clips.open_clips(real_data / "vimeo_septuplets", cache=tmp_path)
    assert [len(clip.frames) for clip in found] == [7] * 6
    assert len(clips.windows(found, 3)) == 30


def test_no_window_holds_a_gap_in_the_numbers_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "CACHE", tmp_path / "cache")
    write_folder(tmp_path / "in" / "a", moving(10))
    sorted((tmp_path / "in" / "a").iterdir())[4].unlink()
    (clip,) = clips.open_clips(tmp_path / "in")
    assert clip.breaks.tolist() == [k == 3 for k in range(8)]
    assert [window.start for window in clips.windows([clip], 3)] == [0, 1, 4, 5, 6]
