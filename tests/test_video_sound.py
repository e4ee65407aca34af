"""Sound goes along with the pictures of interpolate_video.py; what does not is told."""

from fractions import Fraction

import av
import numpy as np
import pytest
from video_files import decode, edited, encode, moving, packets, pictures, retold, run


def test_sound_is_copied_packet_by_packet(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(60), sound="aac")
    run(source, tmp_path / "out.mp4", "--segment", "1")
    assert packets(tmp_path / "out.mp4", "audio") == packets(source, "audio")
    assert len(packets(source, "audio")) > 90
    run(source, tmp_path / "out.mkv", "--fps", "60")
    assert [data for _, data in packets(tmp_path / "out.mkv", "audio")] == [
        data for _, data in packets(source, "audio")
    ]


@pytest.mark.parametrize("rate", ["3/2", "24"])
def test_sound_keeps_its_beginning_and_its_end_whatever_the_frame_rate(tmp_path, rate):
    """MP4 counts both in units that were as long as a frame."""
    plain, source = encode(tmp_path / "plain.mkv", moving(17), sound="aac"), tmp_path / "in.mkv"
    with av.open(str(plain)) as first, av.open(str(source), "w") as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in first.streams]
        for packet in first.demux():
            if packet.size:
                if packet.stream.type == "audio":
                    packet.pts = packet.dts = packet.pts + 137  # milliseconds
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    run(source, tmp_path / "out.mp4", "--fps", rate)
    given, found = packets(source, "audio"), packets(tmp_path / "out.mp4", "audio")
    assert [data for _, data in found] == [data for _, data in given]
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, given)) <= Fraction(1, 1000)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_the_last_sound_is_kept_though_it_is_not_told_how_long_it_lasts(tmp_path, name):
    """As in Matroska with ALAC and in FLV with Opus."""
    source = encode(tmp_path / "in.nut", moving(10), sound="libopus")
    with av.open(str(source)) as container:
        assert {packet.duration for packet in container.demux(audio=0)} == {0}
    run(source, tmp_path / name)
    given, found = packets(source, "audio"), packets(tmp_path / name, "audio")
    assert [data for _, data in found] == [data for _, data in given]


@pytest.mark.parametrize(
    "first, sound, name, kept",
    [
        ("in.mkv", "libopus", "out.mov", False),
        ("in.mkv", "libopus", "out.MP4", True),
        ("in.mkv", "libopus", "out.mkv", True),
        ("in.avi", "pcm_u8", "out.mp4", False),
        ("in.avi", "pcm_s16le", "out.mov", True),
    ],
)
def test_sound_that_a_file_cannot_hold_is_left_out_and_told(tmp_path, capsys, first, sound, name, kept):
    """Some containers refuse it only when they are begun or ended, after all frames are made."""
    source = encode(tmp_path / first, moving(10), sound=sound)
    run(source, tmp_path / name)
    assert len(decode(tmp_path / name)[0]) == 19
    assert ("cannot be stored in" in capsys.readouterr().err) == (not kept)
    with av.open(str(tmp_path / name)) as container:
        assert len(container.streams.audio) == kept


@pytest.mark.parametrize("first", ["in.avi", "in.mkv"])
def test_sound_that_is_not_compressed_is_stereo_in_mp4_though_not_told_as_such(tmp_path, first):
    """MP4 refuses it where it is not told which two channels these are. AVI and Matroska do not tell."""
    source = encode(tmp_path / first, moving(10), sound="pcm_s16le")
    run(source, tmp_path / "out.mp4")
    with av.open(str(source)) as given, av.open(str(tmp_path / "out.mp4")) as found:
        assert [each.streams.audio[0].layout.name for each in (given, found)] == ["2 channels", "stereo"]
    given, found = packets(source, "audio"), packets(tmp_path / "out.mp4", "audio")
    assert b"".join(data for _, data in found) == b"".join(data for _, data in given)


@pytest.mark.parametrize("name", ["out.mkv", "out.mp4"])
@pytest.mark.parametrize("place", [1, 5])
def test_sound_that_a_recording_lost_costs_that_moment_alone_and_is_told(tmp_path, capsys, name, place):
    source = encode(tmp_path / "in.ts", moving(40), sound="aac")
    data = np.frombuffer(source.read_bytes(), np.uint8).reshape(-1, 188).copy()  # MPEG's transport packets
    sound = np.flatnonzero((data[:, 1] & 0x1F == 1) & (data[:, 2] == 1))  # 13 bits are the number of their stream
    data[sound[place], 1:3] = 0x1F, 0xFF  # now padding
    (tmp_path / "lost.ts").write_bytes(data.tobytes())
    run(tmp_path / "lost.ts", tmp_path / name)
    assert "lost.ts: 1 packet of sound or subtitles left out, damaged" in capsys.readouterr().err
    given, kept = packets(tmp_path / "lost.ts", "audio"), packets(tmp_path / name, "audio")
    assert len(kept) == len(given) - 1 and len(decode(tmp_path / name)[0]) == 79


def test_a_track_without_content_that_a_file_cannot_hold_is_left_out_and_told(tmp_path, capsys):
    plain, source = encode(tmp_path / "plain.mkv", moving(4), sound="libopus"), tmp_path / "in.mkv"
    with av.open(str(plain)) as first, av.open(str(source), "w") as output:
        video, _ = [output.add_stream_from_template(stream, opaque=True) for stream in first.streams]
        for packet in first.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
    run(source, tmp_path / "out.mov")
    assert "audio (stream 1, opus) cannot be stored in .mov" in capsys.readouterr().err
    assert len(decode(tmp_path / "out.mov")[0]) == 7


def test_sound_of_a_codec_that_ffmpeg_does_not_know_is_told(tmp_path, capsys):
    source = encode(tmp_path / "in.mov", moving(6), sound="aac")
    source.write_bytes(source.read_bytes().replace(b"mp4a", b"apac").replace(b"esds", b"free"))
    run(source, tmp_path / "out.mkv")
    assert "audio (stream 1, unknown) cannot be stored in .mkv and is left out\n" in capsys.readouterr().err
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize(
    "first, codec, rate, way",
    [
        ("in.3gp", "libopencore_amrnb", 8000, "; use .mov"),
        ("in.flv", "adpcm_swf", 11025, "; convert it first: ffmpeg -i IN -c:v copy -c:a aac OUT.mkv"),
    ],
)
def test_only_a_kind_of_file_that_can_hold_it_is_recommended_for_sound(tmp_path, capsys, first, codec, rate, way):
    """Matroska, which holds most, cannot hold that of old phones, nor as PyAV writes it that of WMV."""
    blocks = [(start, np.zeros(160)) for start in range(0, rate, 160)]
    source = with_sound(tmp_path / first, codec, rate, blocks)
    for name in ("out.mp4", "out.mkv"):
        run(source, tmp_path / name)
        assert f"cannot be stored in {name[3:]} and is left out{way}\n" in capsys.readouterr().err
    run(source, tmp_path / "out.mov")
    with av.open(str(tmp_path / "out.mov")) as container:
        assert len(container.streams.audio) == (way == "; use .mov")


def test_slow_motion_is_silent_and_says_so(tmp_path, capsys):
    run(encode(tmp_path / "in.mp4", moving(10), sound="aac"), tmp_path / "out.mp4", "--slow", "2")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert "--slow 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.mkv", "out.mp4"])
def test_sound_with_the_time_of_the_one_before_is_kept(tmp_path, name):
    """As FFmpeg reads some AC-3 of DVDs. MPEG's unit of time is shorter than those of other containers."""
    plain = encode(tmp_path / "plain.mkv", moving(20), sound="aac", bf="0")
    source = retold(tmp_path / "in.ts", plain, pes_payload_size="0")  # a time for each packet
    data = bytearray(source.read_bytes())
    begins = [place + 9 for place in range(len(data)) if data.startswith(b"\0\0\1\xc0", place)]  # times of sound
    for number, earlier in ((6, 5), (7, 5), (10, 9)):
        data[begins[number] : begins[number] + 5] = data[begins[earlier] : begins[earlier] + 5]
    source.write_bytes(data)
    run(source, tmp_path / name)
    given, found = packets(source, "audio"), packets(tmp_path / name, "audio")
    assert given[5][0] == given[6][0] == given[7][0] and given[9][0] == given[10][0]
    assert [data for _, data in found] == [data[7:] for _, data in given]  # without the header of ADTS
    begin = packets(source, "video")[0][0] - packets(tmp_path / name, "video")[0][0]
    assert max(abs(a - b + begin) for (a, _), (b, _) in zip(found, given)) <= Fraction(4, 1000)


def with_sound(path, codec, rate, blocks, pace=25):
    """25 pictures, `pace` a second, and sound of `blocks`: (time in samples, samples of 16 bits)."""
    plain = encode(path.with_name("plain.mkv"), moving(25), pace, bf="0")
    with av.open(str(path), "w") as output:
        shown = pictures(plain, output)
        audio = output.add_stream(codec, rate=rate, layout="mono")
        output.mux(shown)
        for start, block in blocks:
            frame = av.AudioFrame.from_ndarray(block[None].astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for changed in av.AudioResampler(audio.format, "mono").resample(frame):
                output.mux(audio.encode(changed))
        output.mux(audio.encode(None))
    return path


def samples(path):
    """The sound of a file, decoded."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.mark.parametrize("name", ["out.mkv", "out.mov"])
def test_sound_in_packets_shorter_than_the_unit_of_its_times_does_not_fall_behind(tmp_path, name):
    """As TrueHD in Matroska, which has 1200 packets a second, and times in milliseconds."""
    blocks = [(start, np.full(40, start // 40)) for start in range(0, 48000, 40)]
    source = with_sound(tmp_path / "in.mkv", "pcm_s16le", 48000, blocks)
    run(source, tmp_path / name)
    given, found = packets(source, "audio"), packets(tmp_path / name, "audio")
    assert len({time for time, _ in given}) < 1010 and len(given) == 1200
    assert b"".join(data for _, data in found) == b"".join(data for _, data in given)
    begins = {data[:2]: time for time, data in given}
    assert max(abs(time - begins[data[:2]]) for time, data in found) <= Fraction(1, 1000)


@pytest.mark.parametrize("codec, silent", [("pcm_s16le", 0), ("pcm_u8", 128), ("pcm_mulaw", 0)])
def test_sound_behind_a_gap_does_not_come_early_in_mov(tmp_path, codec, silent):
    """MOV counts samples that are not compressed, and stores no other times."""
    starts = (0, 800, 1600, 8000, 8800)
    blocks = [(start, np.full(800, 3000 + start)) for start in starts]
    run(with_sound(tmp_path / "in.nut", codec, 8000, blocks), tmp_path / "out.mov")
    given, found = samples(tmp_path / "in.nut"), samples(tmp_path / "out.mov")
    assert np.array_equal(found[:2400], given[:2400]) and np.array_equal(found[8000:], given[2400:])
    assert (abs(found[2400:8000].astype(int) - silent) <= 8).all()


def test_silence_in_a_gap_lies_among_the_pictures_of_its_time(tmp_path):
    """Or a player would have to go to and fro in the file."""
    blocks = [(start, np.ones(800)) for start in (0, 800, 23 * 8000)]
    run(with_sound(tmp_path / "in.nut", "pcm_s16le", 8000, blocks, pace=1), tmp_path / "out.mov")
    with av.open(str(tmp_path / "out.mov")) as container:
        stored = sorted((p.pos, p.stream.index, p.pts * p.time_base) for p in container.demux() if p.size)
    latest, apart = {}, []
    for _, index, time in stored:
        latest[index] = time
        apart.append(max(latest.values()) - min(latest.values()))
    assert max(apart) < 3


@pytest.mark.parametrize("apart, size", [(500, 1000), (1, 1)])
def test_no_sample_is_lost_in_mov_where_packets_come_sooner_than_the_one_before_ends(tmp_path, apart, size):
    blocks = [(i * apart, np.arange(i, i + size) % 5000) for i in range(40)]
    run(with_sound(tmp_path / "in.nut", "pcm_s16le", 48000, blocks), tmp_path / "out.mov")
    assert np.array_equal(samples(tmp_path / "out.mov"), samples(tmp_path / "in.nut"))


def test_sound_of_low_rate_keeps_the_packet_that_its_first_one_is_decoded_with(tmp_path):
    """One of AAC lasts for 64 ms at 16000 samples a second."""
    noise = np.random.default_rng(0).integers(-9000, 9000, 1024)
    blocks = [(i * 1024, noise) for i in range(16)]
    source = with_sound(tmp_path / "in.mp4", "aac", 16000, blocks)
    run(source, tmp_path / "out.mp4")
    given, found = packets(source, "audio"), packets(tmp_path / "out.mp4", "audio")
    assert found == given and given[0][0] < -Fraction(6, 100)
    assert np.array_equal(samples(tmp_path / "out.mp4"), samples(source))


@pytest.mark.parametrize("sound", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("end", [26, Fraction(261, 10)])  # in packets: with one, or within it
def test_what_is_hidden_between_two_edits_is_not_heard_and_no_way_back_in_time(tmp_path, sound, end):
    """FFmpeg gives what the second edit is decoded with once more, with earlier times and marked."""
    plain, packet = encode(tmp_path / "plain.mov", moving(60), sound=sound, bf="0", g="10"), Fraction(1024, 44100)
    whole = retold(tmp_path / "whole.mov", plain, movie_timescale="44100")
    source = edited(tmp_path / "in.mov", whole, (0, end * packet), (52 * packet, 78 * packet))
    with av.open(str(source)) as container:
        heard = [(packet.is_discard, bytes(packet)) for packet in container.demux(audio=0) if packet.size]
    hidden = [packet[0] for packet in heard]
    assert hidden != sorted(hidden, reverse=True), "something is hidden behind what is heard"
    run(source, tmp_path / "out.mov")
    found = b"".join(data for _, data in packets(tmp_path / "out.mov", "audio"))
    begin = hidden.index(False)  # AAC has a packet before, marked too, that the first one is decoded with
    assert found == b"".join(data for place, (marked, data) in enumerate(heard) if place < begin or not marked)
    assert len(decode(tmp_path / "out.mov")[0]) == 2 * len(decode(source)[0]) - 1
