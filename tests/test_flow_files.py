"""Optical flow in and out of files: against bytes built by hand, and no broken file gets through."""

import re
import struct

import numpy as np
import pytest
from conftest import png_by_hand, sliding

from utils import flow_files, io

SIZE = 20, 28
PRECISION = {".flo": 0, ".pfm": 0, ".png": 1 / 128, ".f16": 0.032}  # pixels; of .f16 at lengths up to 128


@pytest.fixture
def flow():
    return np.random.default_rng(0).normal(0, 20, (*SIZE, 2)).astype(np.float32)


@pytest.mark.parametrize("ending", flow_files.FLOWS)
def test_flow_comes_back_within_the_precision_of_its_format(tmp_path, flow, ending):
    flow_files.write_flow(tmp_path / f"a{ending}", flow)
    read = flow_files.read_flow(tmp_path / f"a{ending}")
    assert read.dtype == np.float32 and read.shape == flow.shape
    assert np.abs(read - flow).max() <= PRECISION[ending]


def test_flow_files_built_by_hand_are_read(tmp_path, flow):
    height, width = SIZE
    (tmp_path / "a.flo").write_bytes(struct.pack("<fii", 202021.25, width, height) + flow.tobytes())
    np.testing.assert_array_equal(flow_files.read_flow(tmp_path / "a.flo"), flow)
    # A PFM file begins with the lowest row; a positive scale says that the greater byte comes first.
    values = np.concatenate([flow, np.zeros((*SIZE, 1), np.float32)], 2)
    for mark, order in ((b"-1.0", "<f4"), (b"1.0", ">f4")):
        rows = values[::-1].astype(order).tobytes()
        (tmp_path / "a.pfm").write_bytes(b"PF\n%d %d\n%s\n" % (width, height, mark) + rows)
        np.testing.assert_array_equal(flow_files.read_flow(tmp_path / "a.pfm"), flow)


def test_a_kitti_file_is_read_as_its_specification_says(tmp_path):
    # The development kit: u = (R - 2^15) / 64, v = (G - 2^15) / 64, valid where B is not 0.
    pixels = np.zeros((2, 2, 3), np.uint16)
    pixels[0, 0] = 32768 + 64 * 3, 32768 - 32, 1
    pixels[1, 1] = 32768, 32768 + 1, 1
    (tmp_path / "a.png").write_bytes(png_by_hand(pixels))
    nan = [np.nan, np.nan]
    np.testing.assert_array_equal(flow_files.read_flow(tmp_path / "a.png"), [[[3, -0.5], nan], [nan, [0, 1 / 64]]])


def test_unknown_pixels_survive_in_a_kitti_file(tmp_path, flow):
    flow[3, 4] = np.nan
    flow_files.write_flow(tmp_path / "a.png", flow)
    read = flow_files.read_flow(tmp_path / "a.png")
    assert np.isnan(read[3, 4]).all() and np.isnan(read).sum() == 2


@pytest.mark.parametrize("ending", flow_files.FLOWS)
def test_flow_that_is_cut_anywhere_is_refused_by_name(tmp_path, flow, ending):
    flow_files.write_flow(tmp_path / f"whole{ending}", flow)
    data = (tmp_path / f"whole{ending}").read_bytes()
    for length in sorted({len(data) - 1, *range(0, len(data), len(data) // 23)}):
        (tmp_path / f"cut{ending}").write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"cut{ending}: "):
            flow_files.read_flow(tmp_path / f"cut{ending}")


@pytest.mark.parametrize("ending", [".flo", ".f16", ".pfm"])
def test_flow_with_something_behind_it_is_not_called_cut_short(tmp_path, flow, ending):
    flow_files.write_flow(tmp_path / f"long{ending}", flow)
    with open(tmp_path / f"long{ending}", "ab") as file:
        file.write(bytes(8))
    with pytest.raises(ValueError) as refused:
        flow_files.read_flow(tmp_path / f"long{ending}")
    height, width = flow.shape[:2]
    said = re.search(rf"long{ending}: .*{width}x{height} takes (\d+) bytes.*, not (\d+)$", str(refused.value))
    assert said and int(said[2]) - int(said[1]) == 8


@pytest.mark.parametrize("ending", flow_files.FLOWS)
def test_flow_under_a_wrong_name_is_refused(tmp_path, flow, ending):
    for other in set(flow_files.FLOWS) - {ending}:
        flow_files.write_flow(tmp_path / f"a{other}", flow)
        (tmp_path / f"a{other}").rename(tmp_path / f"mislabelled{ending}")
        with pytest.raises(ValueError, match=f"mislabelled{ending}: not a"):
            flow_files.read_flow(tmp_path / f"mislabelled{ending}")


def test_a_picture_is_no_flow_and_a_grey_pfm_neither(tmp_path):
    io.write_image(tmp_path / "picture.png", sliding(1)[0])
    with pytest.raises(ValueError, match="picture.png: not a KITTI flow file: 16-bit RGB"):
        flow_files.read_flow(tmp_path / "picture.png")
    (tmp_path / "depth.pfm").write_bytes(b"Pf\n5 4\n-1.0\n" + bytes(4 * 5 * 4))
    with pytest.raises(ValueError, match="depth.pfm: not flow"):
        flow_files.read_flow(tmp_path / "depth.pfm")


def test_a_size_below_one_pixel_is_refused(tmp_path):
    (tmp_path / "a.flo").write_bytes(struct.pack("<fii", 202021.25, -4, -2) + bytes(64))
    with pytest.raises(ValueError, match="a.flo: a flow of -4x-2"):
        flow_files.read_flow(tmp_path / "a.flo")


@pytest.mark.parametrize("ending", flow_files.FLOWS)
def test_flow_without_a_pixel_is_not_written(tmp_path, ending):
    with pytest.raises(ValueError, match=rf"a{ending}: flow of shape \(0, 5, 2\)"):
        flow_files.write_flow(tmp_path / f"a{ending}", np.zeros((0, 5, 2), np.float32))
    assert not any(tmp_path.iterdir())


def test_flow_that_a_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path, flow):
    flow[0, 0] = 600
    with pytest.raises(ValueError, match="a.png: .* within 512 pixels, not 600; use .flo"):
        flow_files.write_flow(tmp_path / "a.png", flow)
    flow[0, 0] = np.inf
    with pytest.raises(ValueError, match="a.f16: .*use .flo"):
        flow_files.write_flow(tmp_path / "a.f16", flow)
    with pytest.raises(ValueError, match="shape .*is needed"):
        flow_files.write_flow(tmp_path / "a.flo", flow[..., 0])
    with pytest.raises(ValueError, match="a.npy: unknown flow format"):
        flow_files.write_flow(tmp_path / "a.npy", flow)
    assert not list(tmp_path.iterdir())
