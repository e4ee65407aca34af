"""When a video begins and ends, as its container says it: late, in parts, unfinished, or cut short."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_files import HEIGHT, WIDTH, complaint, decode, encode, moving, packets, pictures, retold, run, truncated

from datasets import clips
from utils import containers, video


def test_a_file_that_begins_late_keeps_its_beginning(tmp_path):
    late = [Fraction(1, 2) + Fraction(i, 25) for i in range(8)]
    source = encode(tmp_path / "in.mp4", moving(8), 25, late)
    run(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(1, 2) + Fraction(i, 50) for i in range(15)]


def test_a_beginning_between_milliseconds_is_exact(tmp_path):
    late = [Fraction(1, 3) + Fraction(i, 24) for i in range(8)]
    run(encode(tmp_path / "in.nut", moving(8), 24, late, sound="pcm_s16le"), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(1, 3) + Fraction(i, 48) for i in range(15)]


@pytest.mark.parametrize("kind", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    "name, codec, sound, shift, told",
    [
        ("in.ts", "libx264", "aac", 40000, 40000),
        ("in.ts", "libx264", "aac", 95440, -4),  # seconds before its times begin again, from 0
        ("in.m3u8", "libx264", "aac", 40000, 40000),
        ("in.mkv", "libx264", "aac", 40000, 40000),
        ("in.nut", "libx264", "aac", 40000, 40000),
        ("in.ogv", "libvpx", "libopus", 40000, 40000),
        ("in.asf", "mpeg4", "libmp3lame", 40000, 40000),
        ("in.wtv", "mpeg2video", "mp2", 40000, 40000),
    ],
)
def test_a_recording_whose_times_begin_anywhere_begins_at_once(tmp_path, name, codec, sound, shift, told, kind):
    """Those of broadcasts begin anywhere up to 26 hours, those of streams when they began. told: when, in seconds."""
    plain, late = encode(tmp_path / name, moving(25), codec=codec, sound=sound), tmp_path / f"late_{name}"
    chapter = {"id": 1, "start": 40000, "end": 40001, "time_base": Fraction(1), "metadata": {"title": "all"}}
    chapters = [chapter | {"start": 39000, "end": 39999}, chapter | {"id": 2}] if name == "in.mkv" else []
    retold(late, plain, chapters=chapters, output_ts_offset=str(shift))
    with av.open(str(late)) as container:
        assert told <= container.start_time / av.time_base < told + 1
    for source in (plain, late):
        run(source, tmp_path / f"{source.stem}_out{kind}")
    for stream in ("video", "audio"):
        first, second = (packets(tmp_path / f"{stem}in_out{kind}", stream) for stem in ("", "late_"))
        assert [data for _, data in first] == [data for _, data in second]
        assert all(abs(a - b) <= Fraction(1, 500) and a < 2 for (a, _), (b, _) in zip(first, second))
    holds = [video.open_source(str(source)).hold for source in (plain, late)]
    assert abs(holds[1] - holds[0]) <= Fraction(1, 500)
    if name == "in.mkv":
        with av.open(str(tmp_path / f"late_in_out{kind}")) as container:
            (chapter,) = container.chapters()
        assert [chapter[side] * chapter["time_base"] for side in ("start", "end")] == [0, 1]


@pytest.mark.parametrize("name, form", [("in.avi", "avi"), ("in.asf", "asf"), ("in.mkv", "matroska")])
def test_the_last_frame_of_a_file_that_was_written_into_a_pipe_lasts_as_long_as_the_others(tmp_path, name, form):
    """Its head cannot know the end: that of AVI names one far behind."""
    plain = encode(tmp_path / "plain.mp4", moving(25), codec="mpeg4")
    with open(tmp_path / name, "wb") as file:
        pipe = SimpleNamespace(write=file.write)  # it cannot go back
        with av.open(pipe, "w", format=form) as output:
            for packet in pictures(plain, output):
                output.mux(packet)
    source = video.open_source(str(tmp_path / name))
    assert source.count == 25 and source.notes == () and abs(source.hold - Fraction(1, 25)) <= Fraction(1, 1000)


@pytest.mark.parametrize("flags", ["", "+dash"])  # the latter adds indices, which count from the stream's beginning
def test_the_last_fragments_of_a_stream_begin_at_once_and_are_whole(tmp_path, flags):
    plain = encode(tmp_path / "plain.mp4", moving(50), g="10", bf="2")
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof" + flags}
    data, boxes = retold(tmp_path / "all.mp4", plain, **options).read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        boxes.append((data[4:8], data[:size]))
        data = data[size:]
    ends = [k + 1 for k, (kind, _) in enumerate(boxes) if kind == b"mdat"]
    head = next(k + 1 for k, (kind, _) in enumerate(boxes) if kind == b"moov")
    kept = boxes[:head] + boxes[ends[1] :]  # without two of five fragments of ten frames
    (tmp_path / "in.mp4").write_bytes(b"".join(box for _, box in kept))
    source = video.open_source(str(tmp_path / "in.mp4"))
    assert source.count == 30 and source.notes == () and source.hold == Fraction(1, 25)
    run(tmp_path / "in.mp4", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [frame.pts * frame.time_base for frame in container.decode(video=0)] == [
            Fraction(k, 50) for k in range(59)
        ]


def test_the_pictures_of_fragments_do_not_wait_for_what_only_helps_to_decode_the_sound(tmp_path):
    plain = encode(tmp_path / "plain.mp4", moving(25), sound="libopus", bf="0")
    source = retold(tmp_path / "in.mp4", plain, movflags="frag_keyframe+delay_moov")
    with av.open(str(source)) as container:
        assert container.start_time < 0
    run(source, tmp_path / "out.mp4")
    assert packets(tmp_path / "out.mp4", "video")[0][0] == 0


def test_a_file_cut_short_behind_its_index_is_noticed(tmp_path, capsys):
    source = retold(tmp_path / "fast.mp4", encode(tmp_path / "in.mp4", moving(100)), movflags="+faststart")
    path = truncated(tmp_path / "half.mp4", source, 0.6)
    assert "cut short" in complaint(capsys, path, tmp_path / "out.mp4")


def test_a_little_that_is_missing_at_the_end_is_told(tmp_path, capsys):
    """Some whole files are shorter than they say, so this is no reason to refuse one."""
    whole = encode(tmp_path / "whole.mkv", moving(50), codec="ffv1", g="1")
    for path, told in ((whole, 0), (truncated(tmp_path / "less.mkv", whole, 0.9), 1)):
        run(path, tmp_path / f"{path.stem}.mp4", "--factor", "1")
        lines = [line for line in capsys.readouterr().err.splitlines() if "before it says" in line]
        assert len(lines) == told and all("less.mkv: ends 0.2" in line for line in lines), lines


@pytest.mark.parametrize("name", ["in.mkv", "in.webm", "in.mp4", "in.ts"])
def test_a_whole_file_that_begins_late_is_whole(tmp_path, capsys, name):
    moments = [Fraction(5, 2) + Fraction(k, 25) for k in range(8)]
    codec = "libvpx-vp9" if name == "in.webm" else "libx264"
    source = encode(tmp_path / name, moving(8), 25, moments, codec=codec, b="0" if "vp9" in codec else "1M")
    run(source, tmp_path / "out.mp4")
    assert "ends" not in capsys.readouterr().err and len(decode(tmp_path / "out.mp4")[0]) == 15


def mixed(path, late=0, shift=0, sound="libmp3lame", seconds=4, chapter=0, cover=False):
    """Four seconds of video from the second `shift` on, and of so many of sound, which begins `late`.
    chapter: when it ends. cover: with a picture."""
    options = {".mp4": {"movflags": "+faststart"}, ".mkv": {"avoid_negative_ts": "disabled"}}.get(path.suffix, {})
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream("mpeg4", rate=25, options={"b": "2M"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        audio = output.add_stream(sound, rate=44100, layout="mono")
        if chapter:
            told = {"id": 1, "start": 0, "end": round(1000 * chapter), "time_base": Fraction(1, 1000)}
            output.set_chapters([told | {"metadata": {"title": "all"}}])
        made = []
        if cover:
            picture = output.add_stream("png", rate=1)
            picture.height, picture.width, picture.pix_fmt = HEIGHT, WIDTH, "rgb24"
            picture.disposition = Disposition.attached_pic
            made += picture.encode(av.VideoFrame.from_ndarray(moving(1)[0], format="rgb24"))
        for number, image in enumerate(moving(100)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number + round(25 * shift), Fraction(1, 25)
            made += stream.encode(frame)
        for start in range(0, 44100 * seconds, 1024):
            wave = np.sin(np.arange(start, start + 1024) * 0.06).astype(np.float32)[None] / 3
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, start + int(44100 * late), Fraction(1, 44100)
            made += audio.encode(frame)
        made += stream.encode(None) + audio.encode(None)
        for packet in sorted(made, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return path


@pytest.mark.parametrize(
    "name, how",
    [
        ("in.avi", {"late": 1.5}),
        ("in.asf", {"late": 1.5}),
        ("in.asf", {"shift": 2}),
        ("in.asf", {"shift": 5, "late": 5}),
        ("in.mp4", {"sound": "aac", "chapter": 4.8}),
        ("in.mp4", {"sound": "aac", "chapter": 4.8, "cover": True}),
    ],
)
def test_a_whole_file_whose_streams_begin_or_end_apart_is_whole(tmp_path, name, how):
    source = video.open_source(str(mixed(tmp_path / name, **how)))
    assert source.count == 100 and len(source.notes) == ("cover" in how)  # which is left out


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_video_that_begins_before_zero_keeps_its_first_frames_and_its_sound_in_time(tmp_path, name):
    """MP4, of which parts are made, skips what is before 0."""
    source = mixed(tmp_path / "in.mkv", late=1, shift=Fraction(-4, 25))
    run(source, tmp_path / name)
    assert len(decode(tmp_path / name)[0]) == 199
    apart = [packets(path, "audio")[0][0] - packets(path, "video")[0][0] for path in (source, tmp_path / name)]
    assert packets(source, "video")[0][0] < 0 and abs(apart[1] - apart[0]) <= Fraction(1, 500)


def test_a_whole_file_whose_first_frame_is_shown_in_part_is_whole(tmp_path):
    """FFmpeg leaves such a frame out, and what follows begins earlier by what is left of it."""
    with av.open(str(tmp_path / "in.mp4"), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for image, moment in zip(moving(5), (-1500, 2000, 2040, 2080, 2120)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    source = video.open_source(str(tmp_path / "in.mp4"))
    assert source.count == 4 and source.notes == ()


@pytest.mark.parametrize("name, sound", [("in.avi", "libmp3lame"), ("in.asf", "libmp3lame"), ("in.mp4", "aac")])
@pytest.mark.parametrize("late", [0, 1.5])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, name, sound, late):
    """Of AVI and ASF FFmpeg guesses how long what is left would be, by its size."""
    whole = mixed(tmp_path / name, late, sound=sound)
    for share in (0.3, 0.5, 0.7, 0.85):
        with pytest.raises(ValueError, match="cut short"):
            video.open_source(str(truncated(tmp_path / f"less{whole.suffix}", whole, share)))


def test_a_late_asf_lacks_what_its_size_tells_not_its_beginning_too(tmp_path):
    plain = encode(tmp_path / "in.asf", moving(100), codec="mpeg4")
    late = retold(tmp_path / "late.asf", plain, output_ts_offset="60")
    with pytest.raises(ValueError, match=r"cut short: 2\.\d of 4\.\d s are there"):
        video.open_source(str(truncated(tmp_path / "less.asf", late, 0.6)))


def test_fragments_behind_a_wait_that_are_cut_short_are_refused(tmp_path):
    plain, flags = encode(tmp_path / "in.mp4", moving(100), g="25", crf="5"), "frag_keyframe+delay_moov"
    late = retold(tmp_path / "late.mp4", plain, movflags=flags, output_ts_offset="1000")
    assert video.open_source(str(late)).notes == ()
    with pytest.raises(ValueError, match=r"cut short: 3\.\d of 4\.0 s are there"):
        video.open_source(str(truncated(tmp_path / "less.mp4", late, 0.82)))


@pytest.mark.parametrize("late", [0.3, 2])
def test_an_ogg_whose_sound_begins_late_is_whole(tmp_path, late):
    """FFmpeg says that it lasts longer than it does, by as much: Ogg does not say how long."""
    plain = encode(tmp_path / "in.ogv", moving(50), codec="libvpx", sound="libopus")
    source = video.open_source(str(retold(tmp_path / "late.ogv", plain, late=late)))
    assert source.count == 50 and source.notes == ()


@pytest.mark.parametrize("name", ["in.avi", "in.nut"])
def test_frames_that_are_stored_as_empty_at_the_end_are_the_last_one_shown_on(tmp_path, capsys, name):
    """As programs that capture do where nothing has changed or a frame was lost, and Theora at a low bit rate."""
    plain = encode(tmp_path / "plain.mp4", moving(50), codec="mpeg4")
    with av.open(str(tmp_path / name), "w") as output:
        found = pictures(plain, output)
        output.mux(found)
        for number in range(50, 60):
            empty = av.Packet(b"")
            empty.stream, empty.time_base, empty.duration = found[0].stream, Fraction(1, 25), 1
            empty.pts = empty.dts = number
            output.mux(empty)
    source = video.open_source(str(tmp_path / name))
    assert source.count == 50 and source.hold == Fraction(11, 25)
    run(tmp_path / name, tmp_path / "out.mp4")
    assert "left out" not in capsys.readouterr().err
    assert len(list(clips._decode(tmp_path / name, []))) == 50


@pytest.mark.parametrize("flags", ["no_duration_filesize", "no_metadata"])
def test_a_late_flv_that_does_not_say_how_long_it_lasts_is_whole(tmp_path, flags):
    """As of a live stream, or of a recording that was not finished: FFmpeg names the last time, counted from 0."""
    plain = encode(tmp_path / "in.flv", moving(50), sound="aac")
    late = retold(tmp_path / "late.flv", plain, flvflags=flags, output_ts_offset="50")
    source = video.open_source(str(late))
    assert source.count == 50 and source.notes == ()


def test_a_list_of_segments_without_an_end_is_not_waited_for(tmp_path, capsys):
    whole = encode(tmp_path / "in.m3u8", moving(25))
    text = whole.read_text()
    whole.write_text(text.replace("#EXT-X-ENDLIST\n", ""))
    assert "in.m3u8: names no end, as of a live stream" in complaint(capsys, whole, tmp_path / "out.mp4")
    whole.write_text(f"{whole.read_text()}#EXT-X-ENDLIST\n")
    assert video.open_source(str(whole)).count == 25


def test_a_large_avi_states_the_size_of_all_its_parts(tmp_path):
    path, parts = tmp_path / "in.avi", b"RIFF\x06\0\0\0AVI 12RIFF\x0a\0\0\0AVIX123456"
    for kept, stated in ((len(parts), len(parts)), (len(parts) - 3, len(parts)), (14, 14), (9, 14)):
        path.write_bytes(parts[:kept])
        assert containers.stated_size(path, "avi") == stated


def test_an_avi_that_was_written_into_a_pipe_is_whole(tmp_path):
    """Nobody went back to its beginning to say how long it became."""
    path = tmp_path / "in.avi"
    with open(path, "wb") as file, av.open(SimpleNamespace(write=file.write), "w", format="avi") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for image in moving(50):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    assert path.read_bytes()[4:8] == b"\xff\xff\xff\xff"
    source = video.open_source(str(path))
    assert source.notes == () and len(list(source.frames())) == source.count == 50
    assert len(list(source.frames(Fraction(1)))) == 25


def test_a_file_whose_sound_is_cut_short_is_refused(tmp_path):
    whole = mixed(tmp_path / "in.mp4", sound="aac", seconds=8)
    with pytest.raises(ValueError, match="cut short"):
        video.open_source(str(truncated(tmp_path / "less.mp4", whole, 0.93)))


@pytest.mark.parametrize("rate", [1, 5, 10])
def test_a_whole_file_of_few_frames_a_second_is_whole(tmp_path, capsys, rate):
    """FLV counts its duration from the decoding of the first frame to the end of the last, and stores neither."""
    for options in ({"bf": "3"}, {"bf": "0"}):
        source = encode(tmp_path / "in.flv", moving(12), rate, **options)
        run(source, tmp_path / "out.mp4", "--overwrite")
        assert "ends" not in capsys.readouterr().err and len(decode(tmp_path / "out.mp4")[0]) == 23


@pytest.mark.parametrize("name", ["in.mkv", "in.nut"])
def test_the_last_frame_of_a_few_is_not_shown_as_long_as_their_sound(tmp_path, name):
    """Of few that are reordered FFmpeg may know no beginning, and takes the file's duration for theirs."""
    with av.open(str(tmp_path / name), "w") as output:
        stream, audio = output.add_stream("libx264", rate=25), output.add_stream("pcm_s16le", rate=48000, layout="mono")
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for image in moving(2):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
        for start in range(14400, 96000, 4800):  # later than the frames
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            output.mux(audio.encode(frame))
    run(tmp_path / name, tmp_path / "out.mp4", "--fps", "50")
    assert len(decode(tmp_path / "out.mp4")[0]) == 4
