"""Files are written whole or not at all."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from scripts.common.files import alone_in, write_json, write_whole


def test_write_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "a.nii.gz"
    names = []
    assert write_whole(path, lambda partial: names.append(partial.name) or partial.write_text("first")) == path
    assert path.read_text() == "first"
    assert write_whole(str(path), lambda partial: names.append(partial.name) or partial.write_text("second")) == path
    # hidden, with the suffix by which writers choose the format, and another name for every writer
    assert all(re.fullmatch(r"\.partial_[0-9a-f]{8}_a\.nii\.gz", name) for name in names)
    assert len(set(names)) == 2
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_write_whole_leaves_the_old_file_and_no_half_one(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise error("disk full")

    for name in ("a.txt", "b.txt"):
        with pytest.raises(error, match="disk full"):
            write_whole(tmp_path / name, fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_write_whole_leaves_nothing_behind(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.txt", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_stale_folder_or_file_of_somebody_else_is_left(tmp_path, monkeypatch):
    for name in ("folder", "file"):
        (tmp_path / name).mkdir()
    stale = (tmp_path / "folder" / ".partial_release", tmp_path / "file" / ".partial_1_a.txt")
    stale[0].mkdir()
    stale[1].write_text("half")
    for path in stale:
        os.utime(path, (0, 0))
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **options: _forbidden() if path.name in stale[1].name else unlink(path, **options))
    for path in stale:
        assert write_whole(path.with_name("b.txt"), lambda partial: partial.write_text("b")).read_text() == "b"
        assert path.exists()


def _forbidden() -> None:
    raise PermissionError(1, "Operation not permitted")


def test_only_one_process_at_a_time_is_alone_in_a_folder(tmp_path):
    table = tmp_path / "table"
    table.write_text("0")

    def add() -> None:
        for _ in range(20):
            with alone_in(tmp_path):
                number = int(table.read_text())
                time.sleep(0.001)  # time for another process to read the same number
                table.write_text(str(number + 1))

    children = []
    for _ in range(3):
        if not (child := os.fork()):
            add()
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert table.read_text() == "60"
    with alone_in(tmp_path / "missing"):
        pass


def test_json_is_indented_and_ends_with_a_line_break(tmp_path):
    path = write_json(tmp_path / "new" / "a.json", {"a": [1, "ä"]})
    assert path.read_bytes() == b'{\n "a": [\n  1,\n  "\\u00e4"\n ]\n}\n'
