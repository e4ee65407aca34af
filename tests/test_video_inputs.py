"""Inputs of interpolate_video.py: damaged, oddly named, interlaced, of changing sizes; their faults are reported."""

import os
import shutil
import sys
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from conftest import formula_image
from processes import run_ranks
from video_files import HEIGHT, WIDTH, complaint, decode, encode, moving, run, truncated

from utils import containers, fields, io, video
from utils.parts import begun


def test_broken_inputs_are_named_in_one_line(tmp_path, capsys):
    whole = encode(tmp_path / "whole.mp4", moving(50))
    stream = encode(tmp_path / "whole.mkv", moving(50))
    out = tmp_path / "out.mp4"
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as output:
        audio = output.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        output.mux(audio.encode(frame))
        output.mux(audio.encode(None))
    (tmp_path / "none").mkdir()
    io.write_image(tmp_path / "one" / "1.png", moving(1)[0])
    for i, width in enumerate((128, 96)):
        io.write_image(tmp_path / "two" / f"{i}.png", moving(1)[0][:, :width])
    joined = tmp_path / "joined.ts"  # as broadcasts are
    joined.write_bytes(b"".join(encode(tmp_path / "a.ts", moving(40), sound="aac").read_bytes() for _ in range(2)))
    cases = {
        tmp_path / "missing.mp4": "no such video",
        tmp_path / "text.mp4": "cannot be read as video",
        tmp_path / "empty.mp4": "cannot be read as video",
        tmp_path / "sound.m4a": "no video in this file",
        encode(tmp_path / "single.mp4", moving(1)): "1 frame",
        truncated(tmp_path / "half.mp4", whole, 0.5): "cannot be read as video",
        truncated(tmp_path / "half.mkv", stream, 0.5): "cut short",
        tmp_path / "none": "no pictures",
        tmp_path / "one": "1 frame",
        tmp_path / "two": "frames must have one size",
        tmp_path / "pipe": "is a pipe or a device; give - and pipe y4m in",
        joined: "times go back, from 1.6 to 0.0 s",
    }
    os.mkfifo(tmp_path / "pipe")
    for path, words in cases.items():
        line = complaint(capsys, path, out)
        assert words in line and path.name in line, line
        assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".out*"))


def test_a_codec_without_a_decoder_is_named_with_a_way_out(tmp_path, capsys):
    source = encode(tmp_path / "in.mkv", moving(3), codec="ffv1")
    source.write_bytes(source.read_bytes().replace(b"V_FFV1", b"V_XXX1"))
    line = complaint(capsys, source, tmp_path / "out.mp4")
    assert "in.mkv: this FFmpeg has no decoder for it; convert it to another format first" in line


def test_a_leap_in_time_by_hours_is_named(tmp_path, capsys):
    times = [Fraction(k, 25) + (k > 5) * 8 * 3600 for k in range(10)]
    source = encode(tmp_path / "in.mkv", moving(10), times=times)
    assert "in.mkv: times leap ahead by 28800 s, from 0.2 s on" in complaint(capsys, source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_names_without_an_end_and_with_ways_back_are_taken_as_the_system_takes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    encode(tmp_path / "far/in.mp4", moving(5))
    run("link/../in.mp4", "link/../out.mp4")
    assert len(decode(tmp_path / "far/out.mp4")[0]) == 9 and not (tmp_path / "out.mp4").exists()
    assert "the output has no name" in complaint(capsys, "link/../in.mp4", "")
    assert "the input has no name" in complaint(capsys, "", "out.mp4")


def test_names_with_colons_are_no_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(encode(tmp_path / "in.mp4", moving(20)), "12:30.mp4")
    for out in ("a:b.mp4", "c:d.gif"):
        run("12:30.mp4", out)
        assert Path(out).stat().st_size and not begun(Path(out))


def test_an_animation_behind_a_still_picture_is_taken(tmp_path):
    source = encode(tmp_path / "in.avif", moving(10), codec="libsvtav1", preset="12")
    with av.open(str(source)) as container:
        assert [stream.frames for stream in container.streams.video] == [1, 10]
    run(source, tmp_path / "out.mp4", "--cuts", "no")
    assert len(decode(tmp_path / "out.mp4")[0]) == 19


def test_a_raw_stream_without_times_is_taken(tmp_path):
    run(encode(tmp_path / "in.m1v", moving(10), codec="mpeg1video", b="2M"), tmp_path / "out.mp4")
    assert len(decode(tmp_path / "out.mp4")[0]) == 19


def test_pictures_that_cannot_be_read_are_told_of_beside_those_that_can(tmp_path, capsys):
    for k, image in enumerate(moving(3)):
        io.write_image(tmp_path / f"in/{k}.png", image)
    (tmp_path / "in/1.webp").touch()
    run(tmp_path / "in", tmp_path / "out.gif")
    assert "pictures in .webp are skipped" in capsys.readouterr().err


def test_pictures_that_are_missing_between_others_are_told_of(tmp_path, capsys):
    for k, image in enumerate(moving(10)):
        if k not in (4, 7):
            io.write_image(tmp_path / f"in/{k}.png", image)
    run(tmp_path / "in", tmp_path / "out.gif")
    assert "frames are missing after 3.png and 1 more;" in capsys.readouterr().err


def test_a_preview_of_what_cannot_be_decoded_says_where(tmp_path, capsys):
    path = spoilt(tmp_path / "in.mkv", encode(tmp_path / "whole.mkv", moving(60), g="1"), damaged=range(20, 60))
    assert "no frame can be decoded from 1.18 s on" in complaint(capsys, path, tmp_path / "out.png", "--preview", "1")


def test_an_interlaced_pipe_is_told_of(monkeypatch):
    for header, told in ((b"YUV4MPEG2 W64 H48 F25:1 It C420jpeg\n", True), (b"YUV4MPEG2 W64 H48 F25:1 Ip\n", False)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(header)))
        assert any("interlaced" in note for note in video.open_source("-").notes) == told


def test_an_interlaced_video_is_told_of_though_its_first_frames_are_not(tmp_path):
    parts = []
    for k, options in enumerate(({}, {"flags": "+ilme+ildct"})):
        parts.append(encode(tmp_path / f"{k}.m2v", moving(6)[2 * k : 6 * k + 2], codec="mpeg2video", **options))
    for data, told in ((b"".join(part.read_bytes() for part in parts), True), (parts[0].read_bytes(), False)):
        (tmp_path / "in.m2v").write_bytes(data)
        notes = video.open_source(str(tmp_path / "in.m2v")).notes
        assert sum("interlaced" in note and "-vf bwdif" in note for note in notes) == told


def woven(even, odd):
    """Of two frames one with the even rows of the first and the odd ones of the second."""
    return np.where(np.arange(len(even))[:, None, None] % 2, odd, even)


@pytest.mark.parametrize(
    "how, told",
    [
        ("as filmed", None),
        ("half of it interlaced, as some frames of strongly compressed footage look", None),
        ("interlaced", "seems to be interlaced, though not marked so; deinterlace it first: ffmpeg -i IN -vf bwdif"),
        ("telecined", "-vf fieldmatch,yadif=deint=interlaced,decimate OUT"),
        ("interlaced, too small to tell", None),
    ],
)
def test_what_is_woven_of_two_moments_is_told_of_though_it_is_not_marked(tmp_path, how, told):
    height = 144 if "small" in how else 240
    wide = io.to_uint8(formula_image(height, 400, 5))
    film = [np.ascontiguousarray(wide[:, 4 * k : 4 * k + 320]) for k in range(20)]
    if "half" in how:
        film = [*film[:2], *(woven(*film[k : k + 2]) for k in range(2, 14, 2))]
    elif "interlaced" in how:
        film = [woven(*film[k : k + 2]) for k in range(0, 20, 2)]
    elif how == "telecined":
        film = [f for k in (0, 4, 8) for a, b, c, d in [film[k : k + 4]] for f in (a, b, woven(b, c), woven(c, d), d)]
    notes = video.open_source(str(encode(tmp_path / "in.mp4", film))).notes
    assert notes == () if told is None else told in notes[0]


def test_rows_of_colour_that_were_doubled_are_not_taken_for_woven_ones():
    wide, rows = io.to_uint8(formula_image(240, 400, 5)), np.arange(240) // 2 * 2
    moments = [np.moveaxis(wide[:, 4 * k : 4 * k + 320], 2, 0) for k in range(8)]
    planes = [np.stack([y, cb[rows], cr[rows]]) for y, cb, cr in moments]
    assert fields.note("in.mov", [av.VideoFrame.from_ndarray(each, format="yuv444p") for each in planes]) is None


def test_a_size_that_changes_within_a_file_is_named(tmp_path, capsys):
    parts = []
    for k, side in enumerate((64, 96)):
        images, moments = [np.zeros((64, side, 3), np.uint8)] * 5, [Fraction(5 * k + n, 25) for n in range(5)]
        parts.append(encode(tmp_path / f"{k}.ts", images, 25, moments, bf="0"))
    (tmp_path / "in.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert "in.ts: from 0." in (line := complaint(capsys, tmp_path / "in.ts", tmp_path / "out.mp4"))
    assert "96x64, not 64x64; give them one size" in line


def test_damaged_frames_are_left_out_and_counted(tmp_path, capsys):
    path = spoilt(tmp_path / "in.mkv", encode(tmp_path / "whole.mkv", moving(60), g="1"), damaged=(20, 40))
    run(path, tmp_path / "out.mp4", "--factor", "1")
    assert "in.mkv: 2 frames left out, damaged or cut short; the file may be" in capsys.readouterr().err
    assert decode(tmp_path / "out.mp4")[0] == [Fraction(k, 25) for k in range(60) if k not in (20, 40)]


def test_what_another_rank_meets_is_told(tmp_path):
    """Of a video of one segment the first rank makes nothing."""
    twos = [image for image in moving(40, step=4) for _ in range(2)]
    path = spoilt(tmp_path / "in.mkv", encode(tmp_path / "whole.mkv", twos, codec="ffv1", g="1"), damaged=(61,))
    words = ("interpolate_video", path, tmp_path / "out.mp4", "--factor", "1", "--model_name", "average")
    (status, said), (other, others) = run_ranks(tmp_path, words, words)
    assert status == other == 0, said + others
    assert "in.mkv: 1 frame left out, damaged" in said and "in.mkv: motion often pauses" in said


def spoilt(path, source, damaged, repeated=()):
    """The same packets, but those `damaged` cannot be decoded, and those `repeated` have the time of the one before."""
    with av.open(str(source)) as first, av.open(str(path), "w") as output:
        stream, latest = output.add_stream_from_template(first.streams.video[0], opaque=True), None
        for number, packet in enumerate(packet for packet in first.demux(video=0) if packet.size):
            if number in damaged:
                packet.update(b"\xff" * packet.size)
            if number in repeated:
                packet.pts = packet.dts = latest
            latest, packet.stream = packet.pts, stream
            output.mux(packet)
    return path


@pytest.mark.parametrize("place", [50, 57, 58, 59])
def test_frames_behind_a_damaged_one_near_the_end_are_not_lost(tmp_path, place):
    """However many frames the decoder works on at once."""
    path = spoilt(tmp_path / "in.mkv", encode(tmp_path / "whole.mkv", moving(60), g="1"), damaged=(place,))
    source = video.open_source(str(path))
    times = [frame.time for frame in source.frames()]
    assert times == [Fraction(i, 25) for i in range(60) if i != place] and source.damaged == 1
    for start in range(place - 1, 60):  # as a resumed run does
        source = video.open_source(str(path))
        times = [frame.time for frame in source.frames(Fraction(start, 25))]
        assert times == [Fraction(i, 25) for i in range(start, 60) if i != place], start
        assert source.damaged == (start <= place)


@pytest.mark.parametrize("codec, pix_fmt", [("png", "rgb24"), ("cfhd", "yuv422p10le")])
def test_damage_that_a_decoder_does_not_call_invalid_data_costs_the_frame_alone(tmp_path, codec, pix_fmt):
    """zlib's errors are those of a library; CineForm's decoder speaks of an invalid argument."""
    whole = encode(tmp_path / "whole.mov", moving(9), codec=codec, pix_fmt=pix_fmt)
    with av.open(str(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][4]
        start, stop = packet.pos + packet.size // 3, packet.pos + packet.size
    data = whole.read_bytes()
    (tmp_path / "in.mov").write_bytes(data[:start] + b"\xff" * (stop - start) + data[stop:])
    source = video.open_source(str(tmp_path / "in.mov"))
    times = [frame.time for frame in source.frames()]
    assert times == [Fraction(k, 25) for k in range(9) if k != 4] and source.damaged == 1


def test_damaged_frames_are_counted_once_wherever_reading_begins(tmp_path):
    groups = encode(tmp_path / "groups.mkv", moving(100), g="30", bf="0")
    path = spoilt(tmp_path / "in.mkv", groups, damaged=(35, 70), repeated=(32, 80))
    source = video.open_source(str(path))
    assert len(list(source.frames())) == 96 and source.damaged == 4
    source = video.open_source(str(path))
    list(source.frames(Fraction(55, 25)))  # decoding begins at number 30, a key frame
    assert source.damaged == 2
    source = video.open_source(str(spoilt(tmp_path / "key.mkv", groups, damaged=(60,))))
    list(source.frames(Fraction(60, 25)))  # found by seeking further back, where the damaged frame is met again
    assert source.damaged == 1


def test_damaged_frames_before_the_first_whole_one_are_counted_once(tmp_path):
    single = encode(tmp_path / "single.mkv", moving(100), g="1")
    source = video.open_source(str(spoilt(tmp_path / "in.mkv", single, damaged=range(30))))
    assert len(list(source.frames())) == 70 and source.damaged == 30


def y4m(count):
    rng = np.random.default_rng(0)
    frames = [b"FRAME\n" + rng.integers(0, 256, HEIGHT * WIDTH * 3 // 2, np.uint8).tobytes() for _ in range(count)]
    return f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 C420jpeg\n".encode() + b"".join(frames)


@pytest.mark.parametrize("lost", [0, 1, 5000, HEIGHT * WIDTH * 3 // 2 + 3])
@pytest.mark.parametrize("piped", [False, True])
def test_a_raw_video_whose_last_frame_is_cut_keeps_the_others_and_says_so(tmp_path, monkeypatch, capsys, lost, piped):
    data = y4m(4)[: -lost or None]
    (tmp_path / "in.y4m").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(data)))
    run("-" if piped else tmp_path / "in.y4m", tmp_path / "out.mp4", "--factor", "1")
    assert len(decode(tmp_path / "out.mp4")[0]) == (3 if lost else 4)
    name = "standard input" if piped else "in.y4m"
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(told) == (lost > 0) and all(f"{name}: 1 frame left out, damaged or cut short" in line for line in told)


def test_a_stream_that_begins_late_is_left_out_and_no_error():
    def demux(*streams):
        yield from streams
        raise IndexError("list index out of range")  # PyAV's, at the end of such a recording, by chance

    assert list(containers.packets(SimpleNamespace(demux=demux), 1, 2)) == [1, 2]
