"""A packed set gives what the files give, resumes after an interruption, and notices what is damaged."""

import errno
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch
from conftest import files_up_to, not_waiting
from processes import begin
from test_datasets import write_set
from torch.utils.data import default_collate
from tqdm import tqdm
from training_runs import NAME, assert_same, rows, train_here, weights

from datasets import packed
from datasets.packed import Packed, Resident, decode, encode, is_packed, pack
from datasets.transforms import Augment, finish
from datasets.vimeo90k import Vimeo90K, read_list
from utils import batches, cli
from utils.flow_files import write_flow

NAMES = tuple(f"00001/{k:04}" for k in range(1, 8))
CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path):
    return write_set(tmp_path / "set", NAMES)


@pytest.fixture
def packed_set(files, tmp_path):
    pack(Vimeo90K(files, read_list(files)), tmp_path / "packed", workers=2)
    return tmp_path / "packed"


def test_a_packed_sample_is_that_of_the_files(files, packed_set):
    one, other = Vimeo90K(files, NAMES), Packed(packed_set, NAMES)
    assert len(one) == len(other) == 7
    for k in (0, 6, 2):
        for x, y in zip(one[k], other[k]):
            assert torch.equal(x, y)  # flow too: the set's is in steps of 1/64


def test_a_batch_is_what_its_samples_are(files, packed_set):
    keys = [(k, epoch) for epoch in range(6) for k in range(7)]
    take = Augment(32, seed=1)
    expected = finish(default_collate([Vimeo90K(files, NAMES, take)[key] for key in keys]), CPU)
    got = finish(Packed(packed_set, NAMES, take).batch(keys), CPU)
    for x, y in zip(expected, got):
        assert torch.equal(x, y)


def test_names_choose_and_order(packed_set):
    few = Packed(packed_set, [NAMES[5], NAMES[2]])
    whole = Packed(packed_set)
    assert torch.equal(few[0].imgt, whole[5].imgt) and torch.equal(few[1].imgt, whole[2].imgt)
    with pytest.raises(ValueError, match="1 triplets of the list are not in this set, such as 9/9; pack a list with"):
        Packed(packed_set, ["9/9"])
    with pytest.raises(FileNotFoundError, match="none: no such folder; python -m datasets.packed makes one"):
        Packed(packed_set / "none")
    for names in (iter(NAMES[:2]), np.array(NAMES[:2])):
        assert Packed(packed_set, names).names == list(NAMES[:2])


def test_a_triplet_that_is_listed_twice_counts_twice_as_in_the_files(files, tmp_path):
    names = [*NAMES[:3], NAMES[1], *NAMES[3:]]
    pack(Vimeo90K(files, names), tmp_path / "packed", workers=1)
    whole, source = Packed(tmp_path / "packed"), Vimeo90K(files, names)
    assert len(whole) == len(source) == 8
    assert all(torch.equal(whole[k].imgt, source[k].imgt) for k in range(8))


def test_a_packed_set_travels_to_a_process_as_its_path(packed_set):
    data = Packed(packed_set, NAMES)
    travelled = pickle.dumps(data)
    assert len(travelled) < 5000
    assert torch.equal(pickle.loads(travelled)[3].img0, data[3].img0)


def test_interrupted_packing_goes_on(files, tmp_path, monkeypatch, capsys):
    out, source = tmp_path / "packed", Vimeo90K(files, NAMES)
    frame = files / "sequences" / NAMES[4] / "im2.png"
    kept = frame.read_bytes()
    frame.write_bytes(kept[:100])
    with pytest.raises(ValueError, match="im2.png: the picture is cut short"):
        pack(source, out, workers=1)
    assert is_packed(out)
    with pytest.raises(ValueError, match="not finished; run python -m datasets.packed again"):
        Packed(out)
    frame.write_bytes(kept)
    for name in ("begun", "index"):
        (out / f".{name}.here.7.json").touch()  # by a kill while it was written
    written = np.count_nonzero(np.load(out / "checksums.npy"))
    assert 4 <= written < 7
    capsys.readouterr()
    pack(source, out, workers=1)
    assert f"7 triplets, {written} of them packed before" in capsys.readouterr().out
    assert not list(out.glob(".*"))
    assert torch.equal(Packed(out)[4].imgt, source[4].imgt)


def test_training_on_what_the_command_packs_is_training_on_the_files(vimeo, tmp_path, typed, one_thread, small_network):
    """Step by step: losses, the flow's among them, validation and weights."""
    out = tmp_path / "packed"
    done = typed(packed.main, packed.parser(), "--data", vimeo, "--out", out, "--workers", 1)
    assert done.status == 0 and f"{out}: 9 triplets with flow, 0.00 GB, every checksum right" in done.out
    for data in (vimeo, out):
        train_here(data, tmp_path / data.name, "--batch_size", 4, "--iterations", 2, "--log_every", 1)
    files, arrays = (rows(tmp_path / data.name / NAME) for data in (vimeo, out))
    assert len(files) == 3 and all(float(row["dis"]) > 0 for row in files[:2])
    for a, b in zip(files, arrays, strict=True):
        for name in a.keys() - {"samples_per_s", "wait"}:
            assert a[name] == b[name] or float(a[name]) == pytest.approx(float(b[name]), rel=1e-5), name
    assert_same(weights(tmp_path / vimeo.name), weights(tmp_path / out.name), 1e-6)
    done = typed(packed.main, packed.parser(), "--data", vimeo, "--out", out, "--no_flow")
    assert done.status == 2 and "another choice of flow is packed here" in done.err


@pytest.mark.parametrize(("name", "place"), [("frames.npy", (3, 1, 5, 5, 0)), ("flow.npy", (3, 5, 5, 0))])
def test_damage_is_found_and_mended(files, packed_set, capsys, name, place):
    array = np.load(packed_set / name, mmap_mode="r+")
    array[place] ^= 1  # one bit
    array.flush()
    source = Vimeo90K(files, NAMES)
    with pytest.raises(ValueError, match=f"1 triplets are damaged, such as {NAMES[3]}; run this again"):
        pack(source, packed_set, workers=1)
    with pytest.raises(ValueError, match="packing was not finished"):  # it cannot be trained on before it is repaired
        Packed(packed_set)
    pack(source, packed_set, workers=1)
    assert all(torch.equal(a, b) for a, b in zip(Packed(packed_set)[3], source[3]))


def test_a_set_whose_repacking_was_interrupted_is_not_taken_for_a_whole_one(files, packed_set):
    frame = files / "sequences" / NAMES[4] / "im2.png"
    frame.write_bytes(frame.read_bytes()[:100])
    with pytest.raises(ValueError, match="im2.png: the picture is cut short"):
        pack(Vimeo90K(files, NAMES), packed_set, workers=1)
    with pytest.raises(ValueError, match="packing was not finished"):
        Packed(packed_set)


def test_what_has_changed_since_is_packed_again(files, packed_set, capsys):
    write_set(files, NAMES[2:3])  # other pictures and another flow, under the same names
    source = Vimeo90K(files, NAMES)
    assert not torch.equal(Packed(packed_set)[2].imgt, source[2].imgt)
    capsys.readouterr()
    pack(source, packed_set, workers=1)
    assert "7 triplets, 6 of them packed before" in capsys.readouterr().out
    for k in range(7):
        assert all(torch.equal(a, b) for a, b in zip(Packed(packed_set)[k], source[k]))


def test_another_list_is_not_written_over(files, packed_set):
    with pytest.raises(ValueError, match="another list or another choice of flow is packed here"):
        pack(Vimeo90K(files, NAMES[:3]), packed_set, workers=1)
    assert len(Packed(packed_set)) == 7


def test_a_set_of_frames_of_another_size_is_not_written_over(files, packed_set):
    write_set(files, NAMES, size=(32, 32))
    with pytest.raises(ValueError, match="frames of 64x48 are packed here; give another --out"):
        pack(Vimeo90K(files, NAMES), packed_set, workers=1)
    assert Packed(packed_set)[0].imgt.shape == (3, 48, 64)


def test_a_set_that_was_copied_without_the_note_of_its_beginning_is_known_by_its_index(files, packed_set, capsys):
    (packed_set / "begun.json").unlink()
    with pytest.raises(ValueError, match="another list or another choice of flow is packed here"):
        pack(Vimeo90K(files, NAMES[:3]), packed_set, workers=1)
    pack(Vimeo90K(files, NAMES), packed_set, workers=1)
    assert "7 triplets, 7 of them packed before" in capsys.readouterr().out


@pytest.mark.parametrize("name", [packed.FRAMES, packed.FLOW])
@pytest.mark.parametrize("names", [NAMES, NAMES[:5]])
def test_arrays_of_another_packing_as_a_copy_that_was_interrupted_leaves_them_are_refused(
    files, packed_set, tmp_path, name, names
):
    write_set(tmp_path / "later", names[::-1])  # other pictures under each name
    pack(Vimeo90K(tmp_path / "later", names), tmp_path / "again", workers=1)
    (tmp_path / "again" / name).replace(packed_set / name)
    with pytest.raises(ValueError, match="packed: its files do not belong together; copy them again"):
        Packed(packed_set, flow=False)


def test_flow_may_be_removed_where_it_is_not_wanted(packed_set):
    expected = Packed(packed_set)[2]
    (packed_set / packed.FLOW).unlink()
    assert torch.equal(Packed(packed_set, flow=False)[2].imgt, expected.imgt)
    with pytest.raises(ValueError, match="flow.npy: missing; copy it again"):
        Packed(packed_set)


@pytest.mark.parametrize("name", [packed.FRAMES, packed.SOURCES])
def test_what_a_copy_lacks_is_named_with_a_way_out(files, packed_set, name):
    for path in (packed_set / "begun.json", packed_set / name):
        path.unlink()
    with pytest.raises(ValueError, match=f"{name}: missing; copy it again, or remove .*packed and pack again"):
        pack(Vimeo90K(files, NAMES), packed_set, workers=1)


def test_an_index_beside_nothing_that_is_packed_binds_nobody(files, packed_set):
    (packed_set / "begun.json").unlink()
    np.save(packed_set / packed.CHECKSUMS, np.zeros(7, np.uint32))
    pack(Vimeo90K(files, NAMES[:3]), packed_set, workers=1)
    assert Packed(packed_set).names == list(NAMES[:3])


def test_frames_of_another_packing_from_somewhere_on_are_refused(packed_set):
    """As a copy over an older set leaves them that writes into its files."""
    np.load(packed_set / packed.FRAMES, "r+")[3:] += 1
    with pytest.raises(ValueError, match="packed: its files do not belong together"):
        Packed(packed_set)


def test_a_start_that_packed_nothing_binds_nobody(files, tmp_path):
    out, names = tmp_path / "packed", read_list(files)
    out.mkdir()
    packed._prepare(Vimeo90K(files, names), out, {"names": names, "flow": True})
    pack(Vimeo90K(files, names, flow=False), out, workers=1)
    assert len(Packed(out)) == 7 and not Packed(out).flow and not (out / "flow.npy").exists()


def test_what_is_missing_is_told_before_anything_is_made(files, tmp_path):
    (files / "flow" / NAMES[3] / "flow_t1.flo").unlink()
    with pytest.raises(FileNotFoundError):
        pack(Vimeo90K(files, read_list(files), flow=True), tmp_path / "packed", workers=1)
    assert not list((tmp_path / "packed").iterdir())


def test_frames_of_another_size_cannot_be_packed(files, tmp_path):
    write_set(tmp_path / "set", NAMES[2:3], size=(32, 32))
    with pytest.raises(ValueError, match=f"{NAMES[2]}: 32x32, but the set began with 64x48"):
        pack(Vimeo90K(files, NAMES), tmp_path / "packed", workers=1)


def test_no_space_is_said_before_the_work(files, tmp_path, monkeypatch):
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match="GB are needed, 0.0 are free"):
        pack(Vimeo90K(files, NAMES), tmp_path / "packed", workers=1)
    assert not list((tmp_path / "packed").glob("*.npy"))


def test_fixed_point_keeps_a_128th_of_a_pixel_and_what_is_unknown():
    flow = np.random.default_rng(0).uniform(-511, 511, (20, 20, 4)).astype(np.float32)
    flow[3, 4] = np.nan
    again = decode(encode(flow))
    assert np.isnan(again[3, 4]).all() and np.isnan(again).sum() == 4
    assert np.nanmax(np.abs(again - flow)) <= 1 / 128


def test_flow_beyond_fixed_point_is_unknown_and_counted(files, tmp_path, capsys):
    field = np.float32([[[511.98, -511.98], [512, 3]], [[-1e9, np.inf], [np.nan, 2]]])
    write_flow(files / "flow" / NAMES[2] / "flow_t1.flo", np.tile(field, (24, 32, 1)))
    pack(Vimeo90K(files, NAMES), tmp_path / "packed", workers=2)
    assert f"{2 * 24 * 32} pixels had flow beyond 512 pixels: marked as unknown" in capsys.readouterr().out
    flow = Packed(tmp_path / "packed")[2].flow[2:]
    known = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 1]]]).bool().repeat(1, 24, 32)
    assert torch.equal(flow.isfinite(), known) and flow[known].abs().max() < 512


@pytest.mark.parametrize(
    "sound, hurt",
    # The header, read as Python, lacks a bracket, or has a type that is none, a name of bytes, or a length below zero.
    [(b")", b" "), (b"|u1", b",u1"), (b" 'shape", b"b'shape"), (b" 3,", b"-3,"), (b"", None)],
)
def test_an_array_that_was_cut_or_whose_header_is_damaged_is_named(packed_set, sound, hurt):
    path = packed_set / packed.FRAMES
    data = path.read_bytes()
    path.write_bytes(data[:1000] if hurt is None else data.replace(sound, hurt, 1))
    with pytest.raises(ValueError, match="frames.npy: cut short or damaged; copy it again"):
        Packed(packed_set)


@pytest.mark.parametrize("name", [packed.INDEX, "begun.json", packed.FRAMES, packed.CHECKSUMS])
def test_whatever_was_cut_is_named_by_who_packs_and_by_who_reads(files, packed_set, name):
    with open(packed_set / name, "r+b") as file:
        file.truncate(50)
    read = partial(Packed, packed_set) if name == packed.INDEX else partial(pack, Vimeo90K(files, NAMES), packed_set, 1)
    with pytest.raises(ValueError, match=f"{name}: cut short or damaged; copy it again"):
        read()


class Endless(Vimeo90K):
    """Keeps all processes that read it but the first at work for ever; they say so through a pipe."""

    def stack(self, index):
        if multiprocessing.current_process().name != "packer":
            self.writer.send(os.getpid())
            time.sleep(1000)
        return super().stack(index)


def pack_in_a_group(source, out):
    os.setsid()
    tqdm.set_lock(threading.RLock())  # its own: killed while it held the one that forks share, it would keep that
    pack(source, out, workers=2)


def test_packing_processes_end_with_the_main_one_even_where_it_is_killed(files, tmp_path):
    source, (reader, source.writer) = Endless(files, NAMES), multiprocessing.Pipe(duplex=False)
    packer = multiprocessing.Process(target=pack_in_a_group, args=(source, tmp_path / "out"), name="packer")
    packer.start()
    source.writer.close()
    try:
        assert reader.recv() != packer.pid
        packer.kill()
        packer.join()
        with pytest.raises(EOFError):  # no process is left that could write
            while reader.poll(20):
                reader.recv()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(packer.pid, signal.SIGKILL)


def interrupted_at_its_start(kind, *words):
    usual = BaseProcess.start

    def start(process):
        usual(process)
        os.kill(os.getpid(), int(kind))

    BaseProcess.start = start
    sys.argv[1:] = words
    cli.run(packed.main, packed.parser())


@pytest.mark.parametrize("kind", cli.STOPPING)
def test_packing_that_is_interrupted_while_its_processes_are_started_ends(files, tmp_path, kind):
    words = [int(kind), "--data", files, "--out", tmp_path / "out", "--workers", 2]
    process = begin(*words, work=interrupted_at_its_start, log=tmp_path / "said.txt")
    process.join(60)
    ended = not process.is_alive()
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    said = (tmp_path / "said.txt").read_text()
    assert ended and process.exitcode == 2 and said.endswith(": interrupted\n") and "Traceback" not in said, said


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_an_array_for_which_there_is_no_room_is_named(files, tmp_path):
    out = tmp_path / "out"
    with files_up_to(4096), pytest.raises(OSError) as full:
        pack(Vimeo90K(files, NAMES), out, workers=1)
    assert (full.value.errno, full.value.filename) == (errno.EFBIG, str(out / "frames.npy"))
    pack(Vimeo90K(files, NAMES), out, workers=1)
    assert len(Packed(out)) == 7


class Deadly(Vimeo90K):
    """Kills all processes that read it but the first."""

    def stack(self, index):
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().stack(index)


def test_a_packing_process_that_is_killed_ends_the_packing_and_not_the_set(files, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OSError, match="a packing process was killed; is the disk full"):
        pack(Deadly(files, NAMES), out, workers=2)
    with pytest.raises(ValueError, match="not finished"):
        Packed(out)
    pack(Vimeo90K(files, NAMES), out, workers=2)
    assert len(Packed(out)) == 7


def test_without_flow_there_is_none(files, tmp_path):
    pack(Vimeo90K(files, NAMES, flow=False), tmp_path / "packed", workers=1)
    data = Packed(tmp_path / "packed", NAMES, Augment(32))
    assert finish(data.batch([(0, 0)]), CPU).flow.isnan().all()
    assert not (tmp_path / "packed" / "flow.npy").exists()
    assert json.loads((tmp_path / "packed" / "index.json").read_text())["flow"] is False
    with pytest.raises(ValueError, match="was packed without flow"):
        Packed(tmp_path / "packed", NAMES, flow=True)


def test_flow_that_was_packed_is_left_out_where_it_is_not_wanted(packed_set):
    assert Packed(packed_set)[0].flow.isfinite().all()
    assert Packed(packed_set, flow=False)[0].flow.isnan().all()
    data = Packed(packed_set, augment=Augment(32), flow=False)
    assert finish(data.batch([(0, 0)]), CPU).flow.isnan().all()


def test_batches_read_ahead_are_those_read_in_turn(packed_set):
    data = Packed(packed_set, NAMES, Augment(32))
    first = [list(itertools.islice(batches.read(data, batches.Order(7, 2), workers), 9)) for workers in (0, 2)]
    for a, b in zip(*first):
        assert all(torch.equal(x, y) for x, y in zip(finish(a, CPU), finish(b, CPU)))


def test_a_set_in_gpu_memory_needs_a_gpu(packed_set):
    with pytest.raises(ValueError, match="--cache gpu needs a GPU"):
        Resident(Packed(packed_set, NAMES, Augment(32)), CPU)


def test_what_is_drawn_from_device_memory_is_what_is_read(packed_set, monkeypatch):
    """The drawing is the same torch code on any device, so the CPU stands in for a GPU."""
    keys = [(k, epoch) for epoch in range(6) for k in range(7)]
    data = Packed(packed_set, NAMES, Augment(32))
    resident = object.__new__(Resident)
    resident.augment, resident.device = data.augment, CPU
    resident.frames, resident.flows = (resident._copy(array, data.rows) for array in (data.frames, data.flows))
    for x, y in zip(finish(data.batch(keys), CPU), finish(resident.batch(keys), CPU)):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_set_in_gpu_memory_gives_the_same_batches(packed_set):
    data, device = Packed(packed_set, NAMES, Augment(32)), torch.device("cuda")
    drawn = batches.on_device(batches.read(Resident(data, device), batches.Order(7, 3)), finish, device)
    whole = batches.on_device(batches.read(data, batches.Order(7, 3), 1, pin=True), finish, device)
    assert Resident(data, device).flow
    with not_waiting():
        drawn = list(itertools.islice(drawn, 8))
    for a, b in zip(drawn, whole):
        for x, y in zip(a, b):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=0, equal_nan=True)
