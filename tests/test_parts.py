"""The folder of parts of an unfinished video, alone: what is complete, what is missing, and for which settings."""

import errno

import pytest

from utils import io
from utils.parts import Parts, begun, holds_part


class Text:
    """A writer of a part, as `Parts.making` asks for one."""

    def __init__(self, path):
        self.path, self.written = path, 0

    def write(self, text):
        self.path.write_text(text)
        self.written += 1

    def close(self):
        pass

    def abandon(self):
        self.path.unlink(missing_ok=True)


def begun_parts(out, *numbers, settings=None, resume=False):
    parts = Parts(out, ".txt", settings or {"scale": "1"})
    parts.begin(resume)
    for number in numbers:
        with parts.making(number, Text) as file:
            file.write(str(number))
    return parts


def test_what_is_missing_and_what_can_be_shown_are_told_by_the_parts_that_are_there(tmp_path):
    parts = begun_parts(tmp_path / "out.txt", 0, 1, 4, 8)
    parts.skip(2)
    assert parts.missing(0, 10) == [range(3, 4), range(5, 8), range(9, 10)] and parts.missing(0, 3) == []
    assert [path.read_text() for path in parts.finished()] == ["0", "1", "4", "8"]
    assert parts.unfinished() == [parts.path(0), parts.path(1)]  # none behind a gap
    for number in (5, 3):
        with pytest.raises(KeyboardInterrupt), parts.making(number, Text) as file:
            file.write(f"half of {number}")
            raise KeyboardInterrupt
    assert [path.read_text() for path in parts.unfinished()] == ["0", "1", "half of 3"]
    assert parts.missing(3, 6) == [range(3, 4), range(5, 6)]


def test_a_part_of_which_nothing_was_written_or_that_failed_leaves_no_file(tmp_path):
    parts = begun_parts(tmp_path / "out.txt", 0)
    with pytest.raises(KeyboardInterrupt), parts.making(1, Text):
        raise KeyboardInterrupt
    with pytest.raises(OSError), parts.making(2, Text) as file:
        file.write("2")
        raise OSError("the disk is full")
    assert parts.unfinished() == [parts.path(0)] and parts.missing(0, 3) == [range(1, 3)]


def test_what_is_complete_is_kept_for_equal_settings_alone(tmp_path):
    out = tmp_path / "out.txt"
    folder = begun_parts(out, 0, 1).folder
    for name in ("unfinished-000002.txt", "making-000003.txt", ".out.txt.7.txt", io.LOCK):
        (folder / name).touch()
    resumed = begun_parts(out, resume=True)
    assert {path.name for path in folder.iterdir()} == {"000000.txt", "000001.txt", "settings.json", io.LOCK}
    assert resumed.missing(0, 3) == [range(2, 3)]
    for settings, message in (
        ({"scale": "2"}, "out.txt: was begun with scale 1, not 2; keep it, or start anew"),
        ({"scale": "1", "mode": "fast"}, "begun with mode None, not fast"),
        ({"codec": "h264"}, "begun with codec None, not h264"),
    ):
        with pytest.raises(ValueError, match=message):
            begun_parts(out, settings=settings, resume=True)
    (folder / "settings.json").write_text('{"scale": "1", "mode": "fast"}')  # of which this run knows nothing
    with pytest.raises(ValueError, match="begun with mode fast, not None"):
        begun_parts(out, resume=True)
    assert begun_parts(out, settings={"scale": "2"}).finished() == [] and (folder / io.LOCK).exists()


def test_a_folder_whose_settings_cannot_be_written_is_not_left(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "no space left", str(path))

    monkeypatch.setattr(io, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        begun_parts(tmp_path / "out.txt")
    assert not list(tmp_path.iterdir())


def test_settings_and_a_part_that_was_never_complete_are_nothing_to_go_on_with(tmp_path):
    out = tmp_path / "out.txt"
    parts = begun_parts(out)
    (parts.folder / "making-000000.txt").touch()
    (parts.folder / ".out.txt.7.txt").touch()
    parts.show_part()
    assert not holds_part(out)
    out.touch()
    assert holds_part(out) and not begun(out)
    parts.skip(0)
    assert begun(out)
    parts.remove()
    assert not parts.folder.exists()
    begun_parts(out, 0)
    (parts.folder / io.LOCK).touch()
    parts.remove()
    assert [path.name for path in parts.folder.iterdir()] == [io.LOCK]
