import errno
import json
import os
import pickle
import re
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import sliding
from processes import begin
from torch.utils.data import default_collate
from video_files import as_stored, encode

from datasets import clips
from datasets.transforms import Augment, finish
from utils import containers, io, shots

pytestmark = pytest.mark.usefixtures("own_cache")


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
    frames = sliding()
    write_folder(tmp_path / "in" / "b", frames)
    write_video(tmp_path / "in" / "a.mkv", frames)
    video, folder = clips.open_clips(tmp_path / "in")
    assert (video.name, folder.name) == ("a.mkv", "b")
    assert np.array_equal(folder.frames[:], frames)  # in the order of numbers: 2 comes before 10
    assert np.array_equal(video.frames[:], frames)


def test_the_second_opening_reads_the_cache_and_a_changed_clip_is_decoded_anew(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mkv", sliding(seed=1))
    first = clips.open_clips(tmp_path)[0].frames[:].copy()
    decode = clips._decode
    monkeypatch.setattr(clips, "_decode", None)
    assert np.array_equal(clips.open_clips(tmp_path)[0].frames[:], first)
    monkeypatch.setattr(clips, "_decode", decode)
    write_video(tmp_path / "a.mkv", sliding(seed=2, frames=14))
    assert len(clips.open_clips(tmp_path)[0].frames) == 14
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # what was there before is not kept: frames are large


def test_windows_hold_neither_cuts_nor_repeated_frames(tmp_path):
    frames = np.concatenate([sliding(10, seed=1), sliding(10, seed=2)])
    frames[5] = frames[4]
    breaks = shots.find_breaks(frames)
    assert np.flatnonzero(breaks).tolist() == [4, 9]
    found = clips.windows([clips.Clip("x", frames, breaks)], length=3)
    assert [w.start for w in found] == [0, 1, 2, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17]


def test_a_window_takes_every_stride_th_frame():
    frames = sliding(10)
    clip = clips.Clip("x", frames, np.zeros(9, bool))
    found = clips.windows([clip], length=3, stride=3, step=2)
    assert [w.start for w in found] == [0, 2]
    assert np.array_equal(found[1].frames, frames[[2, 5, 8]])


def test_a_window_is_a_sample_with_all_frames_between_as_targets():
    frames = sliding(5)
    dataset = clips.Windows(clips.windows([clips.Clip("x", frames, np.zeros(4, bool))], length=5))
    sample = dataset[0]
    assert np.array_equal(io.to_uint8(sample.imgt), frames[1:4])
    assert sample.t.tolist() == [0.25, 0.5, 0.75]
    assert sample.flow.isnan().all()
    raw = clips.Windows(dataset.windows, Augment(32))[0, 3]
    assert finish(default_collate([raw]), torch.device("cpu")).imgt.shape == (1, 3, 3, 32, 32)


def test_a_spawned_process_is_told_where_the_frames_are_and_gets_no_copy(tmp_path):
    write_folder(tmp_path / "in" / "a", sliding())
    (clip,) = clips.open_clips(tmp_path / "in")
    sent = pickle.dumps(clips.Windows(clips.windows([clip], 3)))
    assert len(sent) < 5_000 < clip.frames[:].nbytes
    received = pickle.loads(sent).windows
    assert len(received) == 10 and len({id(window.clip) for window in received}) == 1
    assert isinstance(received[9].frames, np.memmap) and np.array_equal(received[9].frames, clip.frames[9:])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux alone")
def test_a_clip_at_hand_is_no_open_file(tmp_path):
    write_folder(tmp_path / "in" / "a", sliding())
    before = len(os.listdir("/proc/self/fd"))
    found = clips.open_clips(tmp_path / "in")
    shape = found[0].frames[3].shape
    assert shape == (48, 64, 3) and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("listed", clips.TRAIN_LISTS)
def test_of_vimeo90k_those_of_the_training_list_are_taken(tmp_path, listed):
    names = ["00001/0001", "00001/0002", "00002/0001"]
    for seed, name in enumerate(names):
        write_folder(tmp_path / "in" / "sequences" / name, sliding(7, seed=seed))
    assert len({w.clip.name for part in clips.split(tmp_path / "in", 3) for w in part}) == 3
    (tmp_path / "in" / listed).write_text("00001/0001\n00002/0001\n\n")
    train, val = clips.split(tmp_path / "in", 3)
    assert {w.clip.name for w in train} == {"sequences/00001/0001"}
    assert {w.clip.name for w in val} == {"sequences/00002/0001"}
    train, val = clips.split(tmp_path / "in", 3, held=["00001/0002"])  # of the test list, by its name there
    assert len({w.clip.name for w in train}) == 2 and {w.clip.name for w in val} == {"sequences/00001/0002"}
    write_folder(tmp_path / "in" / "sequences" / "my own" / "0 1", sliding(7))
    (tmp_path / "in" / listed).write_bytes(b"my own/0 1 \r\n00002/0001/\r\n")
    found = clips.open_clips(tmp_path / "in")
    assert [clip.name for clip in found] == ["sequences/00002/0001", "sequences/my own/0 1"]
    (tmp_path / "in" / listed).write_text("\n")
    with pytest.raises(ValueError, match=f"{listed}: the list is empty"):
        clips.open_clips(tmp_path / "in")
    (tmp_path / "in" / listed).write_text("00001/0001\n00009/0009\n")
    with pytest.raises(ValueError, match=f"{listed}: 1 of its sequences are not there, such as sequences/00009"):
        clips.open_clips(tmp_path / "in")


def test_real_clips_have_the_cuts_and_repeats_that_somebody_listed(real_data, tmp_path):
    listed = json.loads((real_data / "clips" / "clips_index.json").read_text())
    names = ["cotracker_pillow.mp4", "rabbit-watermelon.mp4"]
    for clip in clips.open_clips(real_data / "clips", names, longest=640):
        about = listed[clip.name]
        missed = {*about["cut_after_frame"], *about["near_duplicate_after_frame"]} - {*np.flatnonzero(clip.breaks)}
        assert not missed and clip.breaks.sum() <= len(about["near_duplicate_after_frame"]) + 2, clip.name


def test_no_window_holds_a_leap_in_a_videos_time(tmp_path):
    """Every third frame dropped, as phones and encoders do; and a steady rate with one frame missing."""
    write_video(tmp_path / "in" / "a.mkv", sliding(8), [0, 1, 3, 4, 6, 7, 9, 10])
    write_video(tmp_path / "in" / "b.mkv", sliding(8), [0, 1, 2, 3, 5, 6, 7, 8])
    uneven, missing = clips.open_clips(tmp_path / "in")
    assert np.flatnonzero(uneven.breaks).tolist() == [1, 3, 5] and np.flatnonzero(missing.breaks).tolist() == [3]
    assert not clips.windows([uneven], 3)


@pytest.mark.parametrize("name", ["a.avi", "a.wmv"])
def test_a_container_that_tells_only_when_frames_are_decoded_holds_no_leaps(tmp_path, name):
    frames = sliding(24, 96, 128)
    with containers.av_open(tmp_path / name, "w") as container:
        container.metadata["title"] = as_stored("Männer", "latin-1")  # not UTF-8, as in many an old file
        stream = container.add_stream("libx264", rate=25, options={"bf": "3"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (clip,) = clips.open_clips(tmp_path)
    assert len(clip.frames) == 24 and not clip.breaks.any()


def test_a_clip_that_gives_no_window_is_named(tmp_path):
    write_video(tmp_path / "in" / "a.mkv", sliding(8), [0, 1, 3, 4, 6, 7, 9, 10])
    for name in "bc":
        write_folder(tmp_path / "in" / name, sliding(12))
    with pytest.warns(UserWarning, match="left out, no 3 frames, 1 apart, without .* leap in time: a.mkv"):
        train, val = clips.split(tmp_path / "in", 3)
    assert {window.clip.name for window in train + val} == {"b", "c"}


def test_a_name_as_long_as_a_disk_takes_is_kept_and_what_a_kill_left_is_not(tmp_path):
    name = "日" * 83
    write_folder(tmp_path / "in" / name, sliding())
    (clip,) = clips.open_clips(tmp_path / "in")
    assert clip.name == name and len(clip.frames) == 12
    left = tmp_path / "cache" / f".{clip.frames.path.stem}.host.1.npy"
    clip.frames.path.with_name(clip.frames.path.name.replace("frames", "breaks")).unlink()
    left.write_bytes(b"half")
    clips.open_clips(tmp_path / "in")
    assert not left.exists()


@pytest.mark.parametrize("part", ["frames", "breaks"])
@pytest.mark.parametrize(
    "hurt",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data.replace(b")", b" ", 1),
        lambda data: re.sub(rb"\(1\d,", b"( 0,", data, count=1),  # as the frames' file begins until all are in it
    ],
)
def test_a_cached_file_that_a_power_failure_left_broken_is_made_again(tmp_path, part, hurt):
    write_folder(tmp_path / "a", sliding())
    clips.open_clips(tmp_path)
    (file,) = (tmp_path / "cache").glob(f"*.{part}.npy")
    file.write_bytes(hurt(file.read_bytes()))
    (clip,) = clips.open_clips(tmp_path)
    assert np.array_equal(clip.frames[:], sliding()) and not clip.breaks.any()


def test_large_clips_are_halved(tmp_path):
    write_folder(tmp_path / "a", sliding(3, 48, 64))
    (clip,) = clips.open_clips(tmp_path, longest=40)
    assert clip.frames.shape == (3, 24, 32, 3)


def test_frames_written_over_in_their_folder_are_read_anew(tmp_path):
    for seed in (1, 2):
        write_folder(tmp_path / "a", sliding(seed=seed))
        (clip,) = clips.open_clips(tmp_path)
        assert np.array_equal(clip.frames[:], sliding(seed=seed))


def test_a_link_to_a_folder_that_it_lies_in_adds_no_clips_and_one_to_another_does(tmp_path):
    write_folder(tmp_path / "in" / "a", sliding(3))
    write_folder(tmp_path / "elsewhere", sliding(3, seed=1))
    for place in (tmp_path / "in", tmp_path / "in" / "a"):
        (place / "up").symlink_to(tmp_path / "in")
        (place / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in" / "a")
    found = clips.open_clips(tmp_path / "in")
    assert [clip.name for clip in found] == ["a", "a/more", "more", "more/back"]


def test_hidden_files_are_no_clips_and_one_frame_has_no_windows(tmp_path):
    write_folder(tmp_path / "a", sliding(3))
    write_folder(tmp_path / "cover", sliding(1))
    (tmp_path / "._a.mp4").write_bytes(b"what macOS leaves on other disks")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "._1.png").write_bytes(b"the same")
    found = clips.open_clips(tmp_path)
    assert [clip.name for clip in found] == ["a", "cover"]
    assert {window.clip.name for window in clips.windows(found, 3)} == {"a"}


def opened(folder, cache, wait, locks):
    """In a process of its own: open the clips, of which decoding a frame takes `wait` seconds."""
    decode = clips._decode

    def slow(*how):
        print("decoded", flush=True)
        for frame in decode(*how):
            time.sleep(float(wait))
            yield frame

    def unknown(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    clips._decode, clips.CACHE = slow, Path(cache)
    if locks == "no":
        import fcntl  # not on Windows

        fcntl.flock = unknown
    print(len(clips.open_clips(folder)[0].frames))


def opened_by_two(tmp_path, waits, locks):
    logs = [tmp_path / f"{k}.txt" for k in range(2)]
    both = [
        begin(tmp_path / "in", tmp_path / "cache", wait, locks, work=opened, log=log) for wait, log in zip(waits, logs)
    ]
    for process in both:
        process.join(60)
    return [log.read_text().split() for log in logs]


def test_processes_that_come_together_decode_a_clip_once(tmp_path):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mkv", sliding(40))
    one, other = opened_by_two(tmp_path, (0.02, 0.02), "yes")
    assert sorted(one + other) == ["40", "40", "decoded"]


def test_processes_that_come_together_on_a_disk_without_locks_take_nothing_from_each_other(tmp_path):
    write_video(tmp_path / "in" / "a.mkv", sliding(40))
    assert opened_by_two(tmp_path, (0.05, 0.07), "no") == [["decoded", "40"], ["decoded", "40"]]


def write_undecodable(path):
    encode(path, sliding(3), codec="ffv1")
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
        (lambda folder: (folder / "a.mp4").write_bytes(b"no video at all"), "a.mp4: cannot be read as video"),
        (lambda folder: write_folder(folder / "a", [*sliding(2), *sliding(1, 24, 64)]), "frames of different sizes"),
        (lambda folder: folder.rmdir(), "in: no such folder of clips"),
        (lambda folder: write_sound(folder / "a.mp4"), "a.mp4: no video in this file"),
        (lambda folder: write_undecodable(folder / "a.mkv"), "a.mkv: this FFmpeg has no decoder for it"),
    ],
)
def test_a_folder_without_whole_clips_is_named(tmp_path, make, message):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        clips.open_clips(tmp_path / "in")


def test_a_clip_that_was_asked_for_and_is_not_there_is_named(tmp_path):
    write_folder(tmp_path / "a", sliding(3))
    with pytest.raises(ValueError, match="no clip named b"):
        clips.open_clips(tmp_path, only=["a", "b"])


def test_real_septuplets_are_clips(real_data, tmp_path):
    found = clips.open_clips(real_data / "vimeo_septuplets")
    assert [len(clip.frames) for clip in found] == [7] * 6
    assert len(clips.windows(found, 3)) == 30


def test_no_window_holds_a_gap_in_the_numbers_of_pictures(tmp_path):
    write_folder(tmp_path / "in" / "a", sliding(10))
    sorted((tmp_path / "in" / "a").iterdir())[4].unlink()
    (clip,) = clips.open_clips(tmp_path / "in")
    assert clip.breaks.tolist() == [k == 3 for k in range(8)]
    assert [window.start for window in clips.windows([clip], 3)] == [0, 1, 4, 5, 6]
