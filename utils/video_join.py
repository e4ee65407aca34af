"""Join the parts of a video, in one file, one animation or one folder of pictures.

A part holds a few seconds, encoded on its own: complete parts survive a kill, and ranks make parts side by side. A part
keeps the exact times of frames. Joining copies packets without encoding again, except for GIF.
"""

import heapq
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from io import BytesIO
from itertools import chain, islice
from math import ceil
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.filter import Graph

from . import io
from .containers import av_open, opened, packets, video_stream
from .video import COPIED
from .video_out import MP4, Format, muxer, writing

ATTACHED = "attachment"  # FFmpeg's name for streams such as the fonts of subtitles
OF_THE_FILE = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration")  # not of its content
APPLE = "com.apple.quicktime."
NAMED_ALIKE = ("album", "artist", "comment", "copyright", "description", "genre", "title")  # behind APPLE, too
PRIMING = Fraction(1, 20)  # seconds before the start that audio decoders need, or a packet if this is longer
APART = 10  # seconds by which packets may be out of order
GAP = Fraction(1, 50)  # seconds without sound from which on silence takes their place
PCM = re.compile(r"pcm_(?:[suf](\d+)(?:le|be)?|alaw|mulaw)")  # sound that is not compressed, and its bits
UNNAMED = "2 channels"  # sound of AVI and Matroska, which do not tell left and right, as MP4 has to for PCM
SILENT = {"pcm_u8": b"\x80", "pcm_alaw": b"\xd5", "pcm_mulaw": b"\xff"}  # a byte of silence, where it is not 0
HOLDING = (".mkv", ".mp4", ".mov")  # kinds of output for what another cannot hold, in the order of advice
CONVERTED = "; convert it first: ffmpeg -i IN -c:v copy -c:a aac OUT.mkv"
EMPTY = b"\0\0"  # text of MP4 that shows nothing, and ends the one before
LAST = 1  # second for which a packet is shown that does not say how long, where nothing follows it
TRIED = 8  # packets by which it is told whether a container takes a stream
# What FFmpeg calls languages in MOV, where it does not know their other code of ISO 639-2.
MOV_LANGUAGES = {"bod": "tib", "cym": "wel", "cze": "ces", "deu": "ger", "ell": "gre", "eus": "baq", "fas": "per"}
MOV_LANGUAGES |= {"fre": "fra", "hye": "arm", "isl": "ice", "kat": "geo", "mkd": "mac", "msa": "may", "mya": "bur"}
MOV_LANGUAGES |= {"nld": "dut", "rum": "ron", "slo": "slk", "sqi": "alb", "zho": "chi"}
# Those that it calls by no code of ISO 639-2, and their codes.
MOV_ALONE = {"fo ": "fao", "hr ": "hrv", "iri": "gle", "pa ": "pan", "sr ": "srp", "sve": "swe"}
MOV_LANGUAGES |= {code: name for name, code in MOV_ALONE.items()}
GIF_TICK = Fraction(1, 100)
# A palette of its own for every frame, so that memory does not grow with the length.
GIF_FILTERS = ("split", "palettegen=stats_mode=single", "paletteuse=new=1")


def join_folders(parts: Sequence[Path], out: Path) -> None:
    """The pictures of all parts, numbered consecutively; hard links rather than copies where the disk has them."""
    with _replacing_folder(out, parts[0].parent) as temporary:
        pictures = (picture for part in parts for picture in io.list_images(part))
        for number, picture in enumerate(pictures, 1):
            numbered = temporary / f"{number:08d}.png"
            try:
                numbered.hardlink_to(picture)
            except OSError:  # a disk without hard links
                shutil.copyfile(picture, numbered)


def join_gif(parts: Sequence[Path], out: Path) -> None:
    """One animation that repeats, out of video parts."""
    with io.replacing(out, parts[0].parent) as temporary, writing(out), av_open(temporary, "w") as output:
        stream, graph, ticks = None, None, -1
        for frame in _decoded(parts):
            if stream is None:
                graph = _palette_graph(frame)
                stream = output.add_stream("gif", rate=100)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "pal8"
                stream.codec_context.time_base = GIF_TICK
            moment, shown = (round(n * frame.time_base / GIF_TICK) for n in (frame.pts, frame.duration))
            ticks = max(moment, ticks + 1)
            graph.push(frame)
            reduced = graph.pull()
            reduced.pts, reduced.time_base = ticks, GIF_TICK
            for packet in stream.encode(reduced):
                packet.duration = shown  # nothing else tells how long the last one is shown
                output.mux(packet)
        output.mux(stream.encode(None))


def join_videos(
    parts: Sequence[Path],
    out: Path,
    form: Format,
    source: str | None,
    begin: Fraction,
    whole: bool,
    timed: bool,
) -> int:
    """One file out of parts, packet by packet; returns how many packets of sound and subtitles are left out, damaged.

    source: the file whose metadata, chapters, sound and subtitles are copied, as far as the output can hold them; None
    for none. begin: the time that its times count from. whole: False leaves out chapters, and ends sound and subtitles
    where the pictures end. timed: False leaves out all that has a time, because times have changed.
    """
    mp4, damaged = out.suffix.lower() in MP4, 0
    with (
        io.replacing(out, parts[0].parent) as temporary,
        writing(out),
        nullcontext() if source is None else av_open(source) as container,
    ):
        # Else MP4 and MOV leave out where, when and with what an iPhone recorded, which have names of Apple's own. With
        # it FFmpeg stores nothing by the usual names.
        own = mp4 and source is not None and any(name.startswith(APPLE) for name in container.metadata)
        options = {"movflags": "+faststart" + "+use_metadata_tags" * own} | form.movie_options if mp4 else {}
        with av_open(temporary, "w", format=muxer(out), options=options) as output:
            video = _add_video(output, parts[0], form, mp4)
            merged = [_video_packets(parts, video, 1 / form.nominal)]
            if source is not None:
                streams = _add_streams(output, container, out, source) if timed else {}
                _describe(output, video, container, out, source)
                for name in NAMED_ALIKE if own else ():
                    if name in container.metadata:
                        output.metadata.setdefault(APPLE + name, container.metadata[name])
                if whole and timed:
                    output.set_chapters(_chapters(container, begin))
                end = None if whole else _end(parts[-1])
                others = _in_order(_other_packets(container, streams, begin, end))
                merged.append(_for_mp4(others, container, streams) if mp4 else others)
            for _, _, packet in heapq.merge(*merged):
                try:
                    output.mux(packet)
                except (av.error.InvalidDataError, av.error.ArgumentError):  # the latter where times go back
                    if packet.stream.index == video.index:
                        raise
                    damaged += 1
    return damaged


def _add_video(output: OutputContainer, part: Path, form: Format, mp4: bool) -> av.VideoStream:
    """A stream for the pictures, like that of the part."""
    with av_open(part) as container:
        given = container.streams.video[0]
        video = output.add_stream_from_template(given, opaque=True)
        hevc = given.codec_context.name == "hevc"
    video.codec_context.framerate = form.nominal
    video.codec_context.sample_aspect_ratio = form.aspect
    form.tag(video.codec_context)  # some codecs' frames do not carry this, and parts do not carry all of it
    if hevc and mp4:
        video.codec_context.codec_tag = "hvc1"  # what Apple's players ask for
    return video


def _add_streams(output: OutputContainer, container: InputContainer, out: Path, source: str) -> dict:
    """Streams for what is copied of the file `source`, by their number in it; attachments are copied at once."""
    streams = {}
    for stream in container.streams:
        if stream.type not in (*COPIED, ATTACHED) or not holds(out, source, stream.index):
            continue
        if stream.type == ATTACHED:
            kind = stream.mimetype or "application/octet-stream"
            attached = output.add_attachment("attachment", kind, stream.data)
            if stream.name:
                attached.metadata["filename"] = stream.name  # of any bytes, unlike the name above
            continue
        streams[stream.index] = _add_like(output, stream)
        streams[stream.index].metadata.update(_of_stream(stream, out))
        streams[stream.index].disposition = stream.disposition
    return streams


def _add_like(output: OutputContainer, given: av.stream.Stream) -> av.stream.Stream:
    """A stream for what is copied of `given`."""
    context = given.codec_context
    if context is None or not PCM.fullmatch(context.name) or context.layout.name != UNNAMED:
        return output.add_stream_from_template(given, opaque=True)
    stream = output.add_stream(context.name, rate=context.sample_rate, layout="stereo")
    stream.codec_context.format = context.format
    return stream


def _describe(
    output: OutputContainer, video: av.VideoStream, container: InputContainer, out: Path, source: str
) -> None:
    """Copy the metadata of the file `source`, and the language, title and disposition of its pictures."""
    shown = video_stream(container, source)
    known = _of_stream(shown, out)
    video.metadata.update({name: known[name] for name in ("language", "title") if name in known})
    video.disposition = shown.disposition
    output.metadata.update({k: v for k, v in container.metadata.items() if k.lower() not in OF_THE_FILE})


def _of_stream(stream: av.stream.Stream, out: Path) -> dict[str, str]:
    """The metadata of a stream, as `out` takes them."""
    known = dict(stream.metadata)
    if "name" in known:  # where MP4 is read, FFmpeg calls a title so
        known.setdefault("title", known.pop("name"))
    if "language" in known:
        known["language"] = MOV_ALONE.get(known["language"], known["language"])
        if muxer(out) == "mov":
            known["language"] = MOV_LANGUAGES.get(known["language"], known["language"])
    return known


def _chapters(container: InputContainer, begin: Fraction) -> list[dict]:
    """The chapters that end after `begin`, counted from it."""
    moved = []
    for chapter in container.chapters():
        start, end = (chapter[name] - round(begin / chapter["time_base"]) for name in ("start", "end"))
        if end > 0 or start >= 0:
            moved.append(chapter | {"start": max(start, 0), "end": end})
    return moved


def _video_packets(parts: Sequence[Path], video: av.VideoStream, usual: Fraction) -> Iterator[tuple]:
    """Yield (when it is decoded, 0, packet) for the pictures of all parts. usual: seconds from a frame to the next, at
    the nominal rate."""
    latest = None
    for part in parts:
        with av_open(part) as container:
            stream = container.streams.video[0]
            end = (stream.start_time or 0) + (stream.duration or 0)
            for number, packet in enumerate(container.demux(stream), start=1):
                if not packet.size:
                    continue
                if number == stream.frames and "vp9" in stream.codec_context.name and packet.pts < end:
                    packet.duration = end - packet.pts  # where FFmpeg assumes the usual duration
                elif number < stream.frames:
                    # MP4 says how long until the next is decoded, which a pause may precede: a frame that is shown late
                    # would then seem to last beyond the end. The last one says when all ends.
                    packet.duration = min(packet.duration, ceil(usual / packet.time_base))
                # An encoder that reorders frames starts its dts before its first frame; with frames of unequal length,
                # possibly before the end of the previous part.
                dts = packet.dts * packet.time_base
                if latest is not None and dts <= latest:
                    packet.dts = int(latest / packet.time_base) + 1
                latest = packet.dts * packet.time_base
                packet.stream = video
                yield latest, 0, packet


def _other_packets(container: InputContainer, streams: dict, begin: Fraction, end: Fraction | None) -> Iterator[tuple]:
    """Yield (when it is decoded, its number, packet) for sound and subtitles, up to `end` (None: all). streams: of the
    output, by their number in the container. begin: as in `join_videos`."""
    if not streams:
        return
    given, latest, soonest, played = [container.streams[index] for index in streams], {}, {}, set()
    first = {stream.index: round(begin / stream.time_base) for stream in given}
    # Sound may have the time of the packet before, as some AC-3 in MPEG, and TrueHD in Matroska, where six packets last
    # for five milliseconds. It comes a little later, by less than a unit of its times where that is long: by whole ones
    # it would fall behind more and more.
    finer = {stream.index: ceil(stream.time_base / _least(stream)) for stream in given}
    units = {stream.index: stream.time_base / finer[stream.index] for stream in given}
    steps = {stream.index: ceil(_least(stream) / units[stream.index]) for stream in given}
    for number, packet in enumerate(packets(container, *given)):
        index, moment = packet.stream.index, packet.pts if packet.dts is None else packet.dts
        sound = packet.stream.type == "audio"
        if moment is None or sound and moment < latest.get(index, moment):
            continue  # it has no time, or goes back a little, which no container accepts
        if not packet.is_discard:
            played.add(index)
        elif index in played or not sound:
            continue  # it is not played in an edit of MP4, and only sound before the first helps to decode
        if sound and not packet.duration:
            packet.duration = moment - latest.get(index, moment)  # MP4 loses the last one, if it lasts for no time
        latest[index] = moment
        moment = (moment - first[index]) * finer[index]
        later = max(soonest.get(index, moment) - moment, 0) if sound else 0
        soonest[index] = moment + later + steps[index]
        packet.time_base, packet.duration = units[index], (packet.duration or 0) * finer[index]
        if not sound and moment < 0:  # shown before all else: Matroska would begin with it, but its chapters would not
            if 0 < packet.duration <= -moment:
                continue
            later, packet.duration = -moment, max(packet.duration + moment, 0)
        for name in ("pts", "dts"):
            if getattr(packet, name) is not None:
                setattr(packet, name, (getattr(packet, name) - first[index]) * finer[index] + later)
        time = (moment + later) * units[index]
        lasts = packet.duration * units[index]
        if packet.is_discard and time < -max(PRIMING, lasts):  # cut away by an edit list, which not every container has
            continue
        if end is None or time < end:
            packet.stream = streams[index]
            yield float(time), 1 + number, packet  # thousands are put in order, and comparing fractions takes long


def _least(stream: av.stream.Stream) -> Fraction:
    """Seconds at least from a packet to the next: for sound those of a sample, which is MP4's unit of time."""
    rate = stream.codec_context.sample_rate if stream.type == "audio" and stream.codec_context else 0
    return Fraction(1, rate) if rate else stream.time_base


def _in_order(made: Iterator[tuple]) -> Iterator[tuple]:
    """The same, by their times, as Matroska may have subtitles that begin before those stored earlier."""
    waiting: list[tuple] = []
    for each in made:
        heapq.heappush(waiting, each)
        while waiting[0][0] < each[0] - APART:
            yield heapq.heappop(waiting)
    yield from sorted(waiting)


def _for_mp4(made: Iterator[tuple], container: InputContainer, streams: dict) -> Iterator[tuple]:
    """The same as MP4 and MOV can store it. They count the samples of sound that is not compressed, and store no other
    times: what follows a gap would come too early. Silence fills it, each second at its time. Nor do they keep a last
    packet that lasts for no time, as of a DVD's subtitles, which tell it within. streams: as in `_other_packets`."""
    silences, nexts = {}, {}
    for index, stream in streams.items():
        given = container.streams[index].codec_context
        if given is not None and (match := PCM.fullmatch(given.name)) and given.channels:
            sample = SILENT.get(given.name, b"\0") * (int(match[1] or 8) // 8 * given.channels)
            silences[stream.index] = sample, given.sample_rate
    for time, number, packet in made:
        stream = packet.stream
        if stream.index in silences:
            sample, rate = silences[stream.index]
            due = round(packet.pts * packet.time_base * rate)
            at = nexts.get(stream.index, due)
            gap = range(at, due, rate) if due - at > GAP * rate else ()  # by the second
            for piece in chain((av.Packet(sample * min(rate, due - n)) for n in gap), [packet]):
                piece.stream, piece.time_base, piece.duration = stream, Fraction(1, rate), piece.size // len(sample)
                piece.pts = piece.dts = start = at
                at += piece.duration
                yield start / rate, number, piece
            nexts[stream.index] = at
        else:
            if not packet.duration and bytes(packet) != EMPTY:
                packet.duration = round(LAST / packet.time_base)
            yield time, number, packet


def _decoded(parts: Sequence[Path]) -> Iterator[av.VideoFrame]:
    for part in parts:
        with av_open(part) as container:
            yield from container.decode(video=0)


def _end(part: Path) -> Fraction:
    """When its last frame begins, in seconds."""
    with av_open(part) as container:
        return max(packet.pts * packet.time_base for packet in container.demux(video=0) if packet.size)


def _palette_graph(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    split, palette, use = (graph.add(*text.split("=", 1)) for text in GIF_FILTERS)
    sink = graph.add("buffersink")
    buffer.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


@contextmanager
def _replacing_folder(out: Path, folder: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` at the end; until then it is in `folder`, as in io.replacing."""
    temporary = folder / ".joined"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(out, ignore_errors=True)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def holds(out: Path, path: str, index: int) -> bool:
    """Whether the container of `out` can hold a stream of the file `path` as it is: some only refuse it later."""
    try:
        with av_open(path) as container, av.open(BytesIO(), "w", muxer(out)) as trial:
            given = container.streams[index]
            if given.type == ATTACHED:
                return muxer(out) == "matroska"
            stream = _add_like(trial, given)
            trial.start_encoding()  # a stream may have no packets
            found = (packet for packet in packets(container, given) if packet.pts is not None or not packet.size)
            for packet in islice(found, TRIED):
                if not packet.size:  # PyAV's end of the stream
                    return True
                packet.stream = stream
                with suppress(av.error.InvalidDataError):  # the packet is damaged
                    trial.mux(packet)
                    return True
    except (ValueError, av.FFmpegError):
        pass
    return False


def left_out(path: str, out: Path) -> Iterator[str]:
    """A line for each stream of a file that its output cannot hold."""
    with opened(path) as container:
        for stream in container.streams:
            if stream.type in (*COPIED, ATTACHED) and not holds(out, path, stream.index):
                codec = stream.codec_context.name if stream.codec_context else "unknown"
                kind = f"{stream.type} (stream {stream.index}, {stream.name if stream.type == ATTACHED else codec})"
                others = (out.with_suffix(other) for other in HOLDING if other != out.suffix.lower())
                known = stream.type == "audio" and stream.codec_context
                way = next((f"; use {other.suffix}" for other in others if holds(other, path, stream.index)), None)
                way = way or (CONVERTED if known else "")
                yield f"{out}: {kind} cannot be stored in {out.suffix} and is left out{way}"
