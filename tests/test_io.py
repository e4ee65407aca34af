"""Files in and out: against bytes built by hand and against other libraries, and no broken file gets through."""

import errno
import mmap
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import cv2
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT, png_by_hand
from PIL import Image

from utils import io

SIZE = 20, 28


@pytest.fixture
def picture():
    """A picture with structure, (H, W, 3) uint8; its corners differ, so that turns and flips show."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([9 * x, 12 * y, 4 * (x + y)], -1).astype(np.uint8)


# Pictures


def test_a_full_disk_is_named_by_the_file_that_it_did_not_take(tmp_path):
    with pytest.raises(OSError) as full, io.replacing(tmp_path / "a.png"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path / "a.png"))
    assert not list(tmp_path.iterdir())


def test_a_folder_in_a_files_place_is_named_by_its_own_name(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError) as there:
        io.write_bytes(tmp_path / "a.png", b"")
    assert there.value.filename == str(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


KILLED = """
import os, signal, sys
from utils import io
with io.replacing(sys.argv[1]) as temporary:
    temporary.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["metrics.csv", "[a]*.json", 60 * "long" + ".png"])
def test_what_a_process_that_was_killed_while_it_wrote_a_file_has_left_is_cleared(tmp_path, name):
    path, kept = tmp_path / name, [tmp_path / io.LOCK, tmp_path / ".other.7.csv", tmp_path / "metrics.csv"]
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert done.returncode == -signal.SIGKILL and left.name.startswith(".")
    for other in kept:
        other.touch()
    io.clear_left(path)
    assert set(tmp_path.iterdir()) == set(kept)


def test_a_name_of_any_bytes_and_length_can_be_written(tmp_path):
    for name in (b"caf\xe9.bin", 120 * b"\xc3\xa9" + b".bin"):  # Latin-1; more bytes than letters
        path = tmp_path / os.fsdecode(name)
        try:
            path.touch()
        except OSError:  # a disk that takes only UTF-8
            continue
        io.write_bytes(path, name)
        assert path.read_bytes() == name
        path.unlink()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".png", ".ppm", ".PNG"])
def test_a_picture_comes_back_and_another_library_reads_the_same(tmp_path, picture, ending):
    path = tmp_path / "new folder" / f"picture{ending}"
    io.write_image(path, picture)
    np.testing.assert_array_equal(io.read_image(path), picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)


def test_a_jpeg_is_near_the_picture_and_read_as_another_library_does(tmp_path, picture):
    io.write_image(tmp_path / "picture.jpg", picture)
    read = io.read_image(tmp_path / "picture.jpg")
    assert np.abs(read.astype(int) - picture).mean() < 3
    assert np.abs(read.astype(int) - np.asarray(Image.open(tmp_path / "picture.jpg"))).max() <= 2


def test_pictures_built_by_hand_are_read(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(png_by_hand(picture))
    height, width = SIZE
    (tmp_path / "a.ppm").write_bytes(b"P6\n# a comment\n%d %d\n255\n" % (width, height) + picture.tobytes())
    for name in ("a.png", "a.ppm"):
        np.testing.assert_array_equal(io.read_image(tmp_path / name), picture)


def test_grey_transparent_and_turned_pictures_become_upright_rgb(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(io, "TOLD", bytearray([1, 1]))
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(io.read_image(tmp_path / "grey.png"), np.repeat(picture[..., :1], 3, 2))
    alpha = np.full((*SIZE, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([picture, alpha], 2)).save(tmp_path / "transparent.png")
    np.testing.assert_array_equal(io.read_image(tmp_path / "transparent.png"), picture)
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by a quarter, clockwise
    Image.fromarray(picture).save(tmp_path / "turned.jpg", quality=100, subsampling=0, exif=exif)
    turned = np.rot90(picture, -1)
    assert np.abs(io.read_image(tmp_path / "turned.jpg").astype(int) - turned).max() < 10


def test_a_jpeg_with_something_behind_it_is_whole(tmp_path, picture):
    """Phones append a video, whose bytes may look like anything."""
    path = tmp_path / "picture.jpg"
    io.write_image(path, picture)
    whole = path.read_bytes()
    expected, film = io.read_image(path), np.random.default_rng(0).bytes(3000)
    for behind in (b"\xff\xda", film + b"\xff\xd9\xff\xda", film):
        path.write_bytes(whole + behind)
        assert (io.read_image(path) == expected).all()
    path.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="picture.jpg"):
        io.read_image(path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".ppm"])
def test_a_picture_that_is_cut_anywhere_is_refused_by_name(tmp_path, picture, ending):
    io.write_image(tmp_path / f"whole{ending}", picture)
    data = (tmp_path / f"whole{ending}").read_bytes()
    for length in sorted({len(data) - 1, *range(0, len(data), max(len(data) // 23, 1))}):
        (tmp_path / f"cut{ending}").write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"cut{ending}: "):
            io.read_image(tmp_path / f"cut{ending}")


def test_a_picture_with_a_flipped_bit_is_refused(tmp_path, picture):
    data = bytearray(png_by_hand(picture))
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.png").write_bytes(data)
    with pytest.raises(ValueError, match="damaged.png: .*damaged; copy or make it again"):
        io.read_image(tmp_path / "damaged.png")


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, picture):
    (tmp_path / "a.jpg").write_bytes(png_by_hand(picture))
    (tmp_path / "page.png").write_text("<html>404</html>")
    (tmp_path / "a.tiff").write_bytes(png_by_hand(picture))
    for name, complaint in (("a.jpg", "not a JPG file"), ("page.png", "not a PNG"), ("a.tiff", "unknown picture")):
        with pytest.raises(ValueError, match=f"{name}: {complaint}"):
            io.read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="gone.png: no such file"):
        io.read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="out.bmp: unknown picture format"):
        io.write_image(tmp_path / "out.bmp", picture)


def test_what_is_no_picture_or_cannot_be_one_is_refused_by_name(tmp_path, picture):
    io.write_image(tmp_path / "a.jpg", picture)
    with pytest.raises(ValueError, match="a.jpg: "):
        io.png_size(tmp_path / "a.jpg")
    (tmp_path / "a.ppm").write_bytes(b"P6 no numbers")
    with pytest.raises(ValueError, match="a.ppm: the picture is cut short or damaged"):
        io.read_image(tmp_path / "a.ppm")
    for name, shape in (("wide.jpg", (1, 2**16)), ("none.png", (0, 3))):
        with pytest.raises(ValueError, match=f"{name}: no picture of {shape[1]}x{shape[0]} can be written"):
            io.write_image(tmp_path / name, np.zeros((*shape, 3), np.uint8))
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_a_picture_of_more_pixels_than_can_be_decoded_is_refused_by_name(tmp_path, picture, ending):
    io.write_image(tmp_path / f"small{ending}", picture)
    data = bytearray((tmp_path / f"small{ending}").read_bytes())
    if ending == ".png":
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        place = data.find(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", 60000, 60000)
    path = tmp_path / f"large{ending}"
    path.write_bytes(data)
    for read in (io.read_image, io.read_unchanged):
        with pytest.raises(ValueError, match=f"large{ending}: .*; make it smaller, or copy it again"):
            read(path)


@pytest.mark.parametrize(
    "name, image, what",
    [
        ("a.png", np.full((4, 5, 3), 0.5, np.float32), "float32"),  # would be black
        ("a.jpg", np.zeros((4, 5, 3), np.uint16), "uint16"),  # would be white where it is not nearly black
        ("a.png", np.zeros((4, 5), np.uint8), r"\(4, 5\)"),  # would be mirrored
    ],
)
def test_what_would_be_another_picture_is_not_written(tmp_path, name, image, what):
    with pytest.raises(ValueError, match=f"{name}: .*{what}"):
        io.write_image(tmp_path / name, image)
    assert not any(tmp_path.iterdir())


def test_pictures_are_listed_in_the_order_of_their_numbers(tmp_path, picture):
    for name in ("f10.png", "f9.png", "f1.jpg", "1²3.png", "frame².png", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    ordered = ["1²3.png", "f1.jpg", "f9.png", "f10.png", "frame².png"]  # a raised digit is no number
    assert [path.name for path in io.list_images(tmp_path)] == ordered


def test_an_empty_or_missing_folder_of_pictures_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: no pictures"):
        io.list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        io.list_images(tmp_path / "gone")


def test_frames_of_different_sizes_are_named(tmp_path, picture):
    io.write_image(tmp_path / "a.png", picture)
    io.write_image(tmp_path / "b.png", picture[:-1])
    np.testing.assert_array_equal(io.read_frames([tmp_path / "a.png"] * 2), np.stack([picture, picture]))
    with pytest.raises(ValueError, match="b.png: 28x19, but .*a.png is 28x20"):
        io.read_frames([tmp_path / "a.png", tmp_path / "b.png"])


def test_an_animation_has_its_frames_and_its_speed(tmp_path):
    frames = np.stack([np.full((16, 24, 3), value, np.uint8) for value in (0, 100, 255)])
    io.write_gif(tmp_path / "a.gif", frames, seconds=0.2)
    np.testing.assert_allclose(imageio.imread(tmp_path / "a.gif"), frames, atol=1)
    assert imageio.immeta(tmp_path / "a.gif")["duration"] == 200


def test_floats_are_rounded_to_bytes_and_bytes_survive(picture):
    float_picture = io.to_float(picture)
    assert float_picture.shape == (3, *SIZE) and float_picture.dtype == torch.float32
    np.testing.assert_array_equal(io.to_uint8(float_picture), picture)
    np.testing.assert_array_equal(io.to_float(picture[None])[0], float_picture)
    ramp = torch.tensor([-0.1, 0.49, 0.51, 254.49, 254.51, 300]) / 255
    expected = [0, 0, 1, 254, 255, 255]
    assert io.to_uint8(ramp.expand(3, 1, -1))[0, :, 0].tolist() == expected


# Writing


def test_a_file_under_its_final_name_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), io.replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with io.replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_os_error_that_names_it(tmp_path, picture):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error:
        io.write_image(tmp_path / "file" / "a.png", picture)
    assert str(tmp_path / "file") in str(error.value)


def test_the_first_picture_of_more_than_8_bits_is_named_once(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(io, "TOLD", bytearray(2))
    (tmp_path / "8.png").write_bytes(png_by_hand(picture))
    (tmp_path / "8.ppm").write_bytes(b"P6 28 20 255\n" + picture.tobytes())
    deep = picture.astype(np.uint16) * 256 + 77
    (tmp_path / "16.png").write_bytes(png_by_hand(deep))
    (tmp_path / "16.ppm").write_bytes(b"P6 # 10 bits\n28 20 1023\n" + (deep >> 6).astype(">u2").tobytes())
    for first, second in (("16.png", "16.ppm"), ("16.ppm", "16.png")):
        io.TOLD[io.BITS] = 0
        with warnings.catch_warnings(record=True) as caught:
            for name in ("8.png", "8.ppm", first, second, first):
                assert np.abs(io.read_image(tmp_path / name).astype(int) - picture).max() <= 1
        assert [str(warning.message) for warning in caught] == [
            f"{tmp_path / first}: more than 8 bits per colour; 8 are kept, in all such pictures"
        ]


def test_pictures_are_read_in_16_bits_where_that_is_asked_for(tmp_path, picture):
    deep = picture.astype(np.uint16) * 256 + 77
    (tmp_path / "8.png").write_bytes(png_by_hand(picture))
    (tmp_path / "16.png").write_bytes(png_by_hand(deep))
    (tmp_path / "16.ppm").write_bytes(b"P6 28 20 65535\n" + deep.astype(">u2").tobytes())
    (tmp_path / "10.ppm").write_bytes(b"P6 # 10 bits\n28 20 1023\n" + (deep >> 6).astype(">u2").tobytes())
    (tmp_path / "4.ppm").write_bytes(b"P6 28 20 15\n" + (picture >> 4).tobytes())
    exact = {"8.png": picture * 257.0, "16.png": deep, "16.ppm": deep, "10.ppm": (deep >> 6) * (65535 / 1023)}
    exact["4.ppm"] = (picture >> 4) * (65535 / 15)
    for name, values in exact.items():
        read = io.read_image(tmp_path / name, deep=True)
        assert read.dtype == np.uint16 and np.abs(read - values).max() <= 0.5, name
        assert io.is_deep(tmp_path / name) == (name in ("16.png", "16.ppm", "10.ppm"))
    for name in ("again.png", "again.ppm"):
        io.write_image(tmp_path / name, deep)
        assert (io.read_image(tmp_path / name, deep=True) == deep).all()


@pytest.mark.parametrize("name", ["16.png", "16.ppm", "grey.png"])
def test_of_16_bits_8_are_kept_rounded(tmp_path, monkeypatch, name):
    monkeypatch.setattr(io, "TOLD", bytearray([1, 1]))
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / name), every if name == "grey.png" else np.dstack([every] * 3))
    assert (io.read_image(tmp_path / name) == np.round(every / 257)[..., None]).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_the_first_picture_that_is_transparent_somewhere_is_named_once(tmp_path, picture, monkeypatch, kind):
    monkeypatch.setattr(io, "TOLD", bytearray([1, 0]))  # lost bits are warned of elsewhere
    top = np.iinfo(kind).max
    opaque = np.dstack([picture.astype(kind) * (top // 255), np.full(picture.shape[:2], top, kind)])
    through = opaque.copy()
    through[3, 4, 3] = top - 1
    for name, image in (("opaque", opaque), ("through", through), ("again", through)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA))
    with warnings.catch_warnings(record=True) as caught:
        for name in ("opaque", "through", "again"):
            assert np.array_equal(io.read_image(tmp_path / f"{name}.png"), picture)
    assert [str(warning.message) for warning in caught] == [
        f"{tmp_path / 'through.png'}: transparency is lost, in all such pictures; colours are taken as they are"
    ]


class Pictures(torch.utils.data.Dataset):
    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 4

    def __getitem__(self, _):
        return io.read_image(self.path)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="these processes share nothing")
def test_processes_that_read_ahead_tell_once_for_all_of_them(tmp_path, picture, monkeypatch, capfd):
    monkeypatch.setattr(io, "TOLD", mmap.mmap(-1, 2))
    monkeypatch.setattr(warnings, "warn", lambda text, **_: os.write(2, f"{text}\n".encode()))
    (tmp_path / "16.png").write_bytes(png_by_hand(picture.astype(np.uint16) * 256))
    for _ in range(2):
        list(torch.utils.data.DataLoader(Pictures(tmp_path / "16.png"), batch_size=None, num_workers=2))
    io.read_image(tmp_path / "16.png")
    assert capfd.readouterr().err.count("8 are kept") == 1


# Lists


def test_pictures_below_a_folder_are_found_where_asked_for(tmp_path):
    for name in ("a10.png", "deep/a2.png", "deep/deeper/a1.png", "deep/notes.txt", ".thumbnails/large/a3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in io.list_images(tmp_path)] == ["a10.png"]
    assert [path.name for path in io.list_images(tmp_path, below=True)] == ["a1.png", "a2.png", "a10.png"]


def test_pictures_of_one_name_are_listed_in_the_order_of_their_folders(tmp_path):
    for name in "dhbfagce":  # a disk lists them in an order of its own
        for number in (10, 9):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.png").touch()
    found = [path.relative_to(tmp_path).as_posix() for path in io.list_images(tmp_path, below=True)]
    assert found == [f"{name}/{number}.png" for number in (9, 10) for name in "abcdefgh"]


GAPS = {
    "one after another": (["1", "2", "3"], []),
    "every third": (["f10", "f13", "f16"], []),
    "one missing": (["f08", "f09", "f11", "f12"], [1]),
    "times in milliseconds": (["t0", "t33", "t67", "t100"], []),
    "of two videos": (["a1", "a2", "b7", "b8"], []),
    "names without numbers": (["first", "second"], []),
    "one alone": (["1"], []),
}


@pytest.mark.parametrize("names, expected", GAPS.values(), ids=GAPS)
def test_gaps_are_where_numbers_leap(names, expected):
    assert io.gaps([Path(f"{name}.png") for name in names]) == expected
