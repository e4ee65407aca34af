"""What goes along with the pictures of interpolate_video.py: sound, subtitles, fonts; what does not is told."""

from fractions import Fraction

import av
import numpy as np
import pytest
from video_files import as_stored, decode, encode, moving, packets, run

from utils.containers import av_open


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
        ("in.avi", "pcm_s16le", "out.mp4", False),
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


def test_names_in_capitals_are_names_all_the_same(tmp_path):
    source = encode(tmp_path / "in.mp4", moving(4))
    for name in ("out.mp4", "OUT.MP4", "out.m4v"):
        run(source, tmp_path / name, "--codec", "h265")
        data = (tmp_path / name).read_bytes()
        assert b"hvc1" in data and data.index(b"moov") < data.index(b"mdat")


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


def pictures(plain, output):
    """The packets of the pictures of the file `plain`, for a new stream in `output`."""
    with av.open(str(plain)) as given:
        stream = output.add_stream_from_template(given.streams.video[0], opaque=True)
        found = [packet for packet in given.demux(video=0) if packet.size]
    for packet in found:
        packet.stream = stream
    return found


def with_subtitles(source, plain, lines, lasting, codec="subrip"):
    """The pictures of the file `plain`, with these lines at these milliseconds, each for so many."""
    with av.open(str(source), "w") as output:
        shown = pictures(plain, output)
        text = output.add_mux_stream(codec, time_base=Fraction(1, 1000))
        output.mux(shown)
        for line, moment in lines.items():
            packet = av.Packet(line)
            packet.pts = packet.dts = moment
            packet.duration, packet.time_base, packet.stream = lasting, Fraction(1, 1000), text
            output.mux(packet)
    return source


def test_subtitles_are_copied_where_they_can_be_stored(tmp_path, capsys):
    plain, lines = encode(tmp_path / "plain.mp4", moving(50)), {b"line at 0": 0, b"line at 1000": 1000}
    source = with_subtitles(tmp_path / "in.mkv", plain, lines, 900)
    run(source, tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "subtitle") == packets(source, "subtitle") != []
    run(source, tmp_path / "out.mp4")
    assert "cannot be stored in .mp4 and is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "first, codec, name, kept",
    [
        ("in.mp4", "mov_text", "out.mp4", True),
        ("in.mp4", "mov_text", "out.mov", True),
        ("in.mp4", "mov_text", "out.mkv", False),
        ("in.mkv", "dvd_subtitle", "out.mp4", True),
        ("in.mkv", "dvd_subtitle", "out.mov", False),
    ],
)
def test_subtitles_of_mp4_and_those_of_dvds_are_copied_or_told(tmp_path, capsys, first, codec, name, kept):
    lines = {b"\0\6a line": 0, b"\0\7another": 1000}  # a length precedes those of MP4
    source = with_subtitles(tmp_path / first, encode(tmp_path / "plain.mkv", moving(50), bf="0"), lines, 900, codec)
    run(source, tmp_path / name)
    assert ("subtitle (stream 1, " in capsys.readouterr().err) == (not kept)
    assert len(decode(tmp_path / name)[0]) == 99
    if kept:  # MP4 has empty ones between
        found = [(time, data) for time, data in packets(tmp_path / name, "subtitle") if len(data) > 2]
        assert found == [(Fraction(moment, 1000), line) for line, moment in lines.items()]


def test_the_last_subtitle_is_kept_though_it_is_not_told_how_long_it_lasts(tmp_path):
    """As those of DVDs, which tell it within. MP4 has no packets that last for no time."""
    lines = {b"\0\6a line": 0, b"\0\7another": 1000}
    plain = encode(tmp_path / "plain.mkv", moving(50), bf="0")
    source = with_subtitles(tmp_path / "in.mkv", plain, lines, 0, "dvd_subtitle")
    run(source, tmp_path / "out.mp4")
    found = [(time, data) for time, data in packets(tmp_path / "out.mp4", "subtitle") if len(data) > 2]
    assert found == [(Fraction(moment, 1000), line) for line, moment in lines.items()]


@pytest.mark.parametrize("name, kept, letters", [("out.mkv", True, "latin-1"), ("out.mp4", False, "utf-8")])
def test_attached_fonts_go_along_and_what_does_not_is_told(tmp_path, capsys, name, kept, letters):
    source, font = tmp_path / "in.mkv", b"what draws the subtitles"
    plain = encode(tmp_path / "plain.mkv", moving(10), sound="aac")
    with av.open(str(plain)) as first, av_open(source, "w") as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in first.streams]
        output.add_stream_from_template(first.streams.video[0], opaque=True)
        output.add_attachment("font", "font/ttf", font).metadata["filename"] = as_stored("fönt.ttf", letters)
        for packet in first.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    run(source, tmp_path / name)
    told = capsys.readouterr().err
    assert "in.mkv: video (stream 2) left out" in told
    assert ("attachment (stream 3, fönt.ttf) cannot be stored in .mp4" in told) == (not kept)
    with av_open(tmp_path / name) as container:
        found = [(stream.name, stream.data) for stream in container.streams if stream.type == "attachment"]
    assert found == [(as_stored("fönt.ttf", letters), font)] * kept


@pytest.mark.parametrize("apart, kept", [(1, True), (20, False)])
def test_subtitles_that_are_stored_in_another_order_do_not_cost_the_video(tmp_path, capsys, apart, kept):
    """FFmpeg's writers refuse times that go back."""
    moments = {b"one": 400, b"two": 500, b"three": 500 + 1000 * apart, b"four": 25000, b"five": 25500}
    source = with_subtitles(tmp_path / "in.mkv", encode(tmp_path / "plain.mp4", moving(10)), moments, 90)
    data = bytearray(source.read_bytes())
    time = slice(data.index(b"four") - 3, data.index(b"four") - 1)  # in its cluster, before a byte of flags
    data[time] = (int.from_bytes(data[time], "big", signed=True) - 24600).to_bytes(2, "big", signed=True)
    source.write_bytes(data)
    given = packets(source, "subtitle")
    assert [line for _, line in given] == list(moments) and given[3][0] == given[0][0]
    run(source, tmp_path / "out.mkv")
    one, two, three, four, five = given
    in_order = [one, four, two, three, five] if kept else [one, two, three, five]
    assert packets(tmp_path / "out.mkv", "subtitle") == in_order
    assert ("1 packet of sound or subtitles left out" in capsys.readouterr().err) == (not kept)
    assert len(decode(tmp_path / "out.mkv")[0]) == 19


def retold(path, plain, pictures=(), sound=(), **options):
    """The file `plain` in another, with this metadata of its pictures and sound."""
    with av.open(str(plain)) as given, av.open(str(path), "w", options=options) as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in given.streams]
        for stream, told in zip(streams, (pictures, sound)):
            stream.metadata.update(told)
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return path


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


def edited(path, plain, *edits):
    """The file `plain`, MOV, of which these parts are shown, one behind the other: from and until when, in seconds."""
    data = bytearray(plain.read_bytes())
    movie, place = data.index(b"mvhd"), len(data)
    while (place := data.rfind(b"elst", 0, place)) > 0:
        second, media = (int.from_bytes(data[n + 16 : n + 20], "big") for n in (movie, data.index(b"mdhd", place)))
        first, entries = int.from_bytes(data[place + 16 : place + 20], "big"), b""
        for start, end in edits:
            entries += round((end - start) * second).to_bytes(4, "big")
            entries += (first + round(start * media)).to_bytes(4, "big") + b"\0\1\0\0"
        data[place + 8 : place + 24] = len(edits).to_bytes(4, "big") + entries
        for around in (b"elst", b"edts", b"trak", b"moov"):
            at = data.rfind(around, 0, place + 4)
            size = int.from_bytes(data[at - 4 : at], "big") + len(entries) - 12
            data[at - 4 : at] = size.to_bytes(4, "big")
    path.write_bytes(data)
    return path


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


def test_titles_of_tracks_in_mp4_go_along(tmp_path):
    """FFmpeg reads them under another name than it writes them."""
    plain, title = encode(tmp_path / "plain.mkv", moving(4), sound="aac", bf="0"), "une forêt"
    source = retold(tmp_path / "in.mp4", plain, {"title": title}, {"title": title})
    run(source, tmp_path / "out.mp4")
    run(source, tmp_path / "out.mkv")
    for path in (source, tmp_path / "out.mp4"):
        assert path.read_bytes().count(b"name" + title.encode()) == 2
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [stream.metadata.get("title") for stream in container.streams] == [title, title]
        assert all(stream.disposition & av.stream.Disposition.default for stream in container.streams)


@pytest.mark.parametrize(
    "language, code, back",
    [
        ("fre", 1, "fra"),
        ("deu", 2, "ger"),
        ("swe", 5, "swe"),
        ("hrv", 18, "hrv"),
        ("eng", 0, "eng"),
        ("sqi", 36, "alb"),
    ],
)
def test_languages_go_along_into_mov_by_either_of_their_codes_and_back(tmp_path, language, code, back):
    """A header of a track there holds QuickTime's number of its language."""
    plain = encode(tmp_path / "plain.mkv", moving(4), sound="aac", bf="0")
    run(retold(tmp_path / "in.mkv", plain, {"language": language}, {"language": language}), tmp_path / "out.mov")
    data = (tmp_path / "out.mov").read_bytes()
    places = [place for place in range(len(data)) if data.startswith(b"mdhd", place)]
    assert [int.from_bytes(data[place + 24 : place + 26], "big") for place in places] == [code] * 2
    run(tmp_path / "out.mov", tmp_path / "back.mkv")
    with av.open(str(tmp_path / "back.mkv")) as container:
        assert [stream.metadata.get("language") for stream in container.streams] == [back] * 2


def test_fonts_without_sound_or_subtitles_are_told_where_they_are_left_out(tmp_path, capsys):
    plain, source = encode(tmp_path / "plain.mkv", moving(4)), tmp_path / "in.mkv"
    with av.open(str(source), "w") as output:
        shown = pictures(plain, output)
        output.add_attachment("font", "font/ttf", b"letters").metadata["filename"] = "a.ttf"
        output.mux(shown)
    run(source, tmp_path / "out.mp4")
    assert "attachment (stream 1, a.ttf) cannot be stored in .mp4" in capsys.readouterr().err


@pytest.mark.parametrize("letters", ["utf-8", "latin-1"])  # FFmpeg passes on what old files hold
def test_what_belongs_to_the_content_goes_along(tmp_path, letters):
    of_file = {"ARTIST": "somebody", "COMMENT": "a word", "title": as_stored("a näme", letters)}
    of_pictures = {"language": "fra", "title": as_stored("une forêt", letters)}
    of_chapter = {"title": as_stored("één", letters)}
    source = encode(tmp_path / "plain.mkv", moving(50), sound="aac", bf="0")
    with av.open(str(source)) as given, av_open(tmp_path / "in.mkv", "w") as output:
        streams = {s.index: output.add_stream_from_template(s, opaque=True) for s in given.streams}
        streams[1].disposition = av.stream.Disposition.forced
        streams[0].metadata.update(of_pictures)
        output.metadata.update(of_file)
        chapters = [{"id": 1, "start": 0, "end": 1000, "time_base": Fraction(1, 1000), "metadata": of_chapter}]
        output.set_chapters(chapters)
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    for slow in (1, 2):
        run(tmp_path / "in.mkv", tmp_path / "out.mkv", "--slow", slow, "--overwrite")
        with av_open(tmp_path / "out.mkv") as container:
            assert of_file.items() <= container.metadata.items()
            chapters = [(c["end"] * c["time_base"], c["metadata"]) for c in container.chapters()]
            assert chapters == ([(1, of_chapter)] if slow == 1 else [])
            assert len(container.streams) == (2 if slow == 1 else 1)
            assert of_pictures.items() <= container.streams.video[0].metadata.items()
            assert slow > 1 or container.streams[1].disposition & av.stream.Disposition.forced


@pytest.mark.parametrize("name", ["out.mp4", "out.mov"])
def test_where_and_when_an_iphone_recorded_goes_along(tmp_path, name):
    told = {"location.ISO6709": "+37.3-122.0+010.0/", "creationdate": "2023-07-14T12:11:12+0200", "make": "Apple"}
    told = {f"com.apple.quicktime.{key}": value for key, value in told.items()} | {"comment": "a word"}
    plain, source = encode(tmp_path / "plain.mkv", moving(4), bf="0"), tmp_path / "in.mov"
    with av.open(str(source), "w", options={"movflags": "use_metadata_tags"}) as output:
        output.metadata.update(told)
        output.mux(pictures(plain, output))
    run(source, tmp_path / name)
    with av.open(str(source)) as given, av.open(str(tmp_path / name)) as made:
        assert told.items() <= given.metadata.items() and told.items() <= made.metadata.items()
    data = (tmp_path / name).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_chapters_that_go_along_are_not_told_to_be_left_out(tmp_path, capsys):
    """MP4 holds them as a stream of data, too."""
    chapters = [{"id": 1, "start": 0, "end": 300, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}]
    with av.open(str(encode(tmp_path / "a.mp4", moving(8)))) as given, av.open(str(tmp_path / "in.mp4"), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0], opaque=True)
        output.set_chapters(chapters)
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    run(tmp_path / "in.mp4", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "in.mp4")) as before, av.open(str(tmp_path / "out.mp4")) as after:
        assert [each.type for each in before.streams] == ["video", "data"]
        assert [chapter["metadata"] for chapter in after.chapters()] == [{"title": "one"}]
    assert "left out" not in capsys.readouterr().err
