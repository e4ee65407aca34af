"""What the tests of videos are made of: small files made and read with PyAV alone, and ways to run the script."""

import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT
from processes import begin

import interpolate_video
from utils import cli, containers
from utils.video_out import usual_priority

SCRIPT = str(ROOT / "interpolate_video.py")
HEIGHT, WIDTH = 64, 128  # x264's decisions vary from run to run for frames of less than eight blocks in width
NTSC = Fraction(30000, 1001)
# Samples a second.
RATES = {"aac": 44100, "libmp3lame": 44100, "libopus": 48000, "mp2": 44100, "pcm_s16le": 44100, "pcm_u8": 11025}

containers.spare_copies()  # the tests open files with PyAV itself


def texture(seed, height=HEIGHT, width=WIDTH + 256):
    """A random texture of coarse cells, RGB uint8."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    return np.kron(cells, np.ones((8, 8, 1))).astype(np.uint8)


def moving(count, seed=0, step=2):
    """A texture that moves to the left by `step` pixels a frame."""
    wide = texture(seed, width=(WIDTH + step * count) // 8 * 8 + 16)
    return [np.ascontiguousarray(wide[:, step * i : step * i + WIDTH]) for i in range(count)]


def encode(path, images, rate=25, times=None, codec="libx264", pix_fmt="yuv420p", sound=None, colour=None, **options):
    """A video file, made with PyAV alone. images: RGB, uint8 or uint16. times: in seconds, or at the constant rate.
    sound: an encoder's name. colour: matrix, range."""
    rate = Fraction(rate)
    times = times or [i / rate for i in range(len(images))]
    tick = Fraction(1, 90000) if any((t * rate).denominator != 1 for t in times) else 1 / rate
    turned, aspect = options.pop("turned", 0), options.pop("aspect", Fraction(1))
    with usual_priority(), av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options or ({"crf": "5"} if codec == "libx264" else {}))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.time_base = pix_fmt, tick
        stream.codec_context.time_base, stream.codec_context.sample_aspect_ratio = tick, aspect
        matrix, extent = colour or (6, 1)
        if colour:
            stream.codec_context.colorspace, stream.codec_context.color_range = colour
        if turned:
            stream.set_display_rotation(turned)
        layout = "stereo" if sound and sound.startswith("pcm") else "mono"
        audio = output.add_stream(sound, rate=RATES[sound], layout=layout) if sound else None
        for image, moment in zip(images, times):
            frame = av.VideoFrame.from_ndarray(image, format="rgb48le" if image.dtype == np.uint16 else "rgb24")
            space = {1: 1, 6: 5}[matrix]
            if not pix_fmt.startswith(("rgb", "bgr", "gbr")):
                frame = frame.reformat(format=pix_fmt, dst_colorspace=space, dst_color_range=extent)
            frame.pts, frame.time_base = round(moment / tick), tick
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound:
            wave = np.sin(np.arange(int(RATES[sound] * (times[-1] + 1 / rate))) * 0.06).astype(np.float32)[None] / 3
            for start in range(0, wave.shape[1], 1024):
                block = np.ascontiguousarray(wave[:, start : start + 1024])
                if sound.startswith("pcm"):
                    both = (block * 32767).astype(np.int16).repeat(2, 1)
                    frame = av.AudioFrame.from_ndarray(both, format="s16", layout="stereo")
                else:
                    frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = RATES[sound], start
                output.mux(audio.encode(frame))
            output.mux(audio.encode(None))
    return path


def truncated(path, source, share):
    """The first `share` of the bytes of the file `source`."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def pictures(plain, output):
    """The packets of the pictures of the file `plain`, for a new stream in `output`."""
    with av.open(str(plain)) as given:
        stream = output.add_stream_from_template(given.streams.video[0], opaque=True)
        found = [packet for packet in given.demux(video=0) if packet.size]
    for packet in found:
        packet.stream = stream
    return found


def retold(path, plain, pictures=(), sound=(), chapters=(), late=0, **options):
    """The file `plain` in another, with this metadata of its pictures and sound, and these chapters. late: by how many
    seconds its sound comes later."""
    with av.open(str(plain)) as given, av.open(str(path), "w", options=options) as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in given.streams]
        for stream, told in zip(streams, (pictures, sound)):
            stream.metadata.update(told)
        if chapters:
            output.set_chapters(chapters)
        for packet in given.demux():
            if packet.size:
                if late and packet.stream.type == "audio":
                    packet.pts = packet.dts = packet.pts + round(late / packet.time_base)
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return path


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


def as_stored(text, letters):
    """A text as PyAV gives it where a file holds it in these letters: bytes that are no UTF-8 are escaped."""
    return text.encode(letters).decode("utf-8", "surrogateescape")


def decode(path):
    """Times in seconds from the first frame, and RGB frames, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    times = [frame.pts * frame.time_base for frame in frames]
    return [t - times[0] for t in times], [frame.to_ndarray(format="rgb24") for frame in frames]


def planes(path):
    """The decoded samples of every frame, plane after plane, no colour conversion."""

    def samples(plane, bits):
        rows = np.frombuffer(plane, np.uint16 if bits > 8 else np.uint8).reshape(plane.height, -1)
        return rows[:, : plane.width].ravel()

    with av.open(str(path)) as container:
        return [
            np.concatenate([samples(plane, frame.format.components[0].bits) for plane in frame.planes])
            for frame in container.decode(video=0)
        ]


def packets(path, kind):
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


def run(*args, model="average"):
    """The script in this process; errors are raised."""
    interpolate_video.main(interpolate_video.parser().parse_args([*map(str, args), "--model_name", model]))


def complaint(capsys, *args, model="average"):
    """What a person sees who makes a mistake: exit status 2 and one line."""
    capsys.readouterr()  # what runs before it said
    sys_argv, sys.argv = sys.argv, ["interpolate_video.py", *map(str, args), "--model_name", model]
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.run(interpolate_video.main, interpolate_video.parser())
    finally:
        sys.argv = sys_argv
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "frame/s" not in line and line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


def as_typed(*words):
    """In a process of its own: what the script does, with what was put in place of its parts."""
    sys.argv = [SCRIPT, *words]
    cli.run(interpolate_video.main, interpolate_video.parser())


def holding(second, on, *words):
    write, until = interpolate_video.Job.write, time.monotonic() + 120  # or a test that failed would not end

    def held(job, writer, picture):
        while picture.time > Fraction(second) and not Path(on).exists() and time.monotonic() < until:
            time.sleep(0.005)
        write(job, writer, picture)

    interpolate_video.Job.write = held
    as_typed(*words)


def start(second, on, *args, model="average"):
    """The script in a process of its own, which stands still behind that second of the output until the file `on` is
    there, or a signal comes. What it says goes into the file `on` with .txt behind it."""
    words = (second, on, *args, "--model_name", model)
    return begin(*words, work=holding, log=on.with_suffix(".txt"))


def interrupted_after(seconds, monkeypatch, source, out, *words, **kwargs):
    """Ctrl-C behind so many seconds of a run in parts of one second; what it said."""
    write = interpolate_video.Job.write

    def interrupted(job, writer, picture):
        if picture.time > seconds:
            raise KeyboardInterrupt
        write(job, writer, picture)

    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt) as caught:
        during.setattr(interpolate_video.Job, "write", interrupted)
        run(source, out, "--segment", "1", *words, **kwargs)
    return str(caught.value)
