"""What goes along with the pictures and sound of interpolate_video.py: subtitles and their fonts, chapters, titles,
languages and other metadata; what does not is told."""

from fractions import Fraction

import av
import pytest
from video_files import as_stored, decode, edited, encode, moving, packets, pictures, retold, run

from utils.containers import av_open


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


def test_subtitles_from_before_the_pictures_delay_neither_them_nor_chapters(tmp_path):
    """As in a part of a recording. FFmpeg counts its beginning without subtitles that are more than a second earlier,
    and Matroska has no times below 0."""
    plain = encode(tmp_path / "plain.mp4", moving(50), times=[60 + Fraction(i, 25) for i in range(50)])
    lines = {b"over": 57000, b"on": 57500, b"later": 61000}
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as output:
        spans = ((50, 60), (60, 61), (61, 62))
        output.set_chapters(
            [
                {"id": number, "start": start, "end": end, "time_base": Fraction(1), "metadata": {"title": str(start)}}
                for number, (start, end) in enumerate(spans, start=1)
            ]
        )
        shown = pictures(plain, output)
        text = output.add_mux_stream("subrip", time_base=Fraction(1, 1000))
        output.mux(shown)
        for line, moment in lines.items():
            packet = av.Packet(line)
            packet.pts = packet.dts = moment
            packet.duration, packet.time_base, packet.stream = 2800, Fraction(1, 1000), text
            output.mux(packet)
    run(source, tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "video")[0][0] == 0
    with av.open(str(tmp_path / "out.mkv")) as container:
        chapters = [(each["metadata"]["title"], each["start"] * each["time_base"]) for each in container.chapters()]
        found = [(packet.pts, packet.duration, bytes(packet)) for packet in container.demux(subtitles=0) if packet.size]
    assert chapters == [("60", 0), ("61", 1)]
    assert found == [(0, 300, b"on"), (1000, 2800, b"later")]


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


def test_an_empty_text_at_the_end_of_mp4_still_lasts_for_no_time(tmp_path):
    """FFmpeg ends subtitles with one; or the file would be a second longer."""
    lines, plain = {b"\0\6a line": 0, b"\0\7another": 1700, b"\0\0": 2000}, encode(tmp_path / "plain.mkv", moving(50))
    run(with_subtitles(tmp_path / "in.mp4", plain, lines, 0, "mov_text"), tmp_path / "once.mp4")
    run(tmp_path / "once.mp4", tmp_path / "twice.mp4")
    assert packets(tmp_path / "once.mp4", "subtitle")[-1] == (2, b"\0\0")
    with av.open(str(tmp_path / "twice.mp4")) as container:
        text = container.streams.subtitles[0]
        assert text.duration * text.time_base == 2


def test_subtitles_that_an_edit_cuts_away_do_not_delay_those_that_follow(tmp_path):
    """FFmpeg's writer of MP4 counts from the first of them, but not where it ends one that is shown."""
    lines = {b"\0\6a line": 0, b"\0\7another": 600, b"\0\7a third": 1200}
    plain = encode(tmp_path / "plain.mkv", moving(60), bf="0", g="10")
    whole = with_subtitles(tmp_path / "whole.mp4", plain, lines, 300, "mov_text")
    source = edited(tmp_path / "in.mp4", whole, (Fraction(1, 2), 2))
    run(source, tmp_path / "out.mp4")
    for path in (source, tmp_path / "out.mp4"):
        found = [(time, data) for time, data in packets(path, "subtitle") if len(data) > 2]
        assert found == [(0, b"\0\7another"), (Fraction(3, 5), b"\0\7a third")]


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
    told = {f"com.apple.quicktime.{key}": value for key, value in told.items()}
    told |= {"comment": "a word", "title": "a name"}
    plain, source = encode(tmp_path / "plain.mkv", moving(4), bf="0"), tmp_path / "in.mov"
    with av.open(str(source), "w", options={"movflags": "use_metadata_tags"}) as output:
        output.metadata.update(told)
        output.mux(pictures(plain, output))
    run(source, tmp_path / name)
    with av.open(str(source)) as given, av.open(str(tmp_path / name)) as made:
        assert told.items() <= given.metadata.items() and told.items() <= made.metadata.items()
        # Then FFmpeg stores a title by a name of its own, too, and no longer by that of MP4 or MOV.
        assert made.metadata.get("com.apple.quicktime.title") == "a name"
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
