"""What a mask is made from."""

from __future__ import annotations

import os

import pytest
from conftest import BUNDLE

from scripts.batch.done import Done


@pytest.mark.parametrize(("header", "voxels"), [("a.mhd", "a.raw"), ("a.mhd", "a.zraw"), ("a.nhdr", "a.raw.gz"), ("b.c.NHDR", "b.c.gz")])
def test_the_file_of_the_voxels_counts(tmp_path, header, voxels):
    for name in (header, voxels, "other.raw", "weights.pt"):
        (tmp_path / name).write_bytes(b"1234")
    done = Done(str(tmp_path), str(tmp_path), str(tmp_path / "weights.pt"), {}, str(BUNDLE / "configs" / "inference.yaml"))
    first = done.made_from(tmp_path / header)
    assert first["scan"].startswith("8 bytes, ")
    (tmp_path / "other.raw").write_bytes(b"1")
    assert done.made_from(tmp_path / header) == first
    os.utime(tmp_path / voxels, ns=(0, 2**61))
    assert done.made_from(tmp_path / header)["scan"] == f"8 bytes, modified at {2**61} ns"
