"""Bad labels are named, all of them, before a training begins."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import UserError
from scripts.data.check_labels import check_labels, order_problems
from scripts.labels import encode

# the second axis runs down and forward, 1.6 mm of 2 mm a voxel
OBLIQUE = np.array([[0, 0, 3.0, 5], [-1.6, 1.2, 0, 7], [-1.2, -1.6, 0, -40], [0, 0, 0, 1]])
BODIES = [20, 21, 22, 23]  # L1 to L4


def column(levels: list[int]) -> np.ndarray:
    """Structures of five voxels, 8 mm, one below the other along the second axis."""
    values = np.zeros((4, 5 * len(levels) + 2, 3), np.uint8)
    for i, level in enumerate(levels):
        values[1:3, 5 * i + 1 : 5 * i + 6, 1] = level
    return values


def problems(levels: list[int], scheme: str = "verse") -> list[str]:
    return order_problems(encode(column(levels), "label", scheme), OBLIQUE, scheme)


def test_levels_in_order():
    assert (
        problems(BODIES)
        == problems([20, 120, 21, 121, 22])
        == problems([123, 24, 124, 25, 125, 26])
        == problems([22])
        == problems([])
        == []
    )
    assert problems([3, 2, 1], "spider") == []  # counted from below


def test_a_label_of_two_scans_is_compared_with_both(tmp_path):
    for name, values, affine in (("t1", column(BODIES), np.eye(4)), ("t2", column(BODIES), OBLIQUE), ("seg", column(BODIES), OBLIQUE)):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}.nii")
    entries = [{"image": tmp_path / f"{name}.nii", "label": tmp_path / "seg.nii"} for name in ("t1", "t2", "t2")]
    check_labels(entries[1:])
    with pytest.raises(UserError, match=rf"^{tmp_path}/seg.nii: not on the grid of {tmp_path}/t1.nii [^\n]*$"):
        check_labels(entries)


def test_two_levels_exchanged():
    assert problems([20, 22, 21, 23]) == ["L3 (22) lies 8 mm above L2 (21), which should be the other way round. Correct the numbers."]
    assert problems([2, 3, 1], "spider") == ["L4 (2) lies 8 mm above L3 (3), which should be the other way round. Correct the numbers."]


def test_one_level_out_of_order():
    assert problems([20, 24, 21, 22]) == ["L5 (24) lies 16 mm above L3 (22), which should be the other way round. Correct the numbers."]
    assert [line[:35] for line in problems([20, 21, 120, 22])] == ["L2 (21) lies 8 mm above L1/L2 (120)"]  # a disc below its lower body


def test_numbers_from_feet_to_head():
    upside_down = "numbered upside down, L4 (23) lies above L1 (20). Levels count from head to feet; or the scan's header is wrong."
    assert problems(BODIES[::-1]) == [upside_down]


def write(path: Path, values: np.ndarray, affine: np.ndarray = OBLIQUE) -> str:
    nib.save(nib.Nifti1Image(values, affine), path)
    return str(path)


def test_every_problem_of_every_file_in_one_error(tmp_path):
    good = column(BODIES)
    mirrored = OBLIQUE @ np.diag([1, 1, -1, 1])  # left and right exchanged
    files = {
        "a": (column(BODIES[::-1]), OBLIQUE),
        "b": (np.where(good == 22, 99, good), OBLIQUE),
        "c": (good * np.float32(0.5), OBLIQUE),
        "d": (np.zeros_like(good), OBLIQUE),
        "e": (good, mirrored),
        "f": (good[:, :-1], OBLIQUE),
        "g": (good, OBLIQUE),
    }
    image = write(tmp_path / "scan.nii.gz", np.zeros(good.shape, np.int16))
    entries = [{"image": image, "label": write(tmp_path / f"{name}_seg.nii.gz", *file)} for name, file in files.items()]
    (tmp_path / "h_seg.nii.gz").write_bytes(b"no scan")
    entries.append({"image": image, "label": str(tmp_path / "h_seg.nii.gz")})
    with pytest.raises(UserError) as error:
        check_labels([*entries, entries[0]])  # a repeated scan is named once
    lines = str(error.value).replace(f"{tmp_path}/", "").splitlines()
    starts = [
        "a_seg.nii.gz: numbered upside down, L4 (23) lies above L1 (20)",
        "b_seg.nii.gz: unknown label values [99]",
        "c_seg.nii.gz: fractional label values, e.g. 10.5",
        "d_seg.nii.gz: no foreground, all values are 0",
        "e_seg.nii.gz: not on the grid of scan.nii.gz (affines that differ by up to 12 mm)",
        "f_seg.nii.gz: not on the grid of scan.nii.gz (shape (4, 22, 3) and (4, 21, 3))",
        "h_seg.nii.gz: cannot be read",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts)] == starts
    assert len(lines) == len(starts)
    assert error.value.exit_code == 1


@pytest.mark.parametrize("suffix", ["nii.gz", "mha"])
def test_a_series_has_the_grid_of_its_volumes(tmp_path, suffix):
    """Training takes its mean."""
    image = str(tmp_path / f"series.{suffix}")
    if suffix == "mha":
        itk.imwrite(itk.image_from_array(np.arange(2 * 3 * 22 * 4, dtype=np.int16).reshape(2, 3, 22, 4)), image)
        affine = np.diag([-1, -1, 1, 1])  # ITK counts towards left and posterior
    else:
        affine = OBLIQUE
        write(tmp_path / "series.nii.gz", np.zeros((4, 22, 3, 2), np.int16), affine)
    check_labels([{"image": image, "label": write(tmp_path / "label.nii.gz", column(BODIES), affine)}])


def test_a_damaged_scan_is_named(tmp_path):
    image = Path(write(tmp_path / "scan.nii.gz", np.random.default_rng(0).integers(0, 99, (30, 30, 30)).astype(np.int16)))
    stream = bytearray(image.read_bytes())
    stream[12:60] = bytes(range(200, 248))
    image.write_bytes(stream)
    with pytest.raises(UserError, match=rf"^{image}: cannot be read \(.*\)"):
        check_labels([{"image": str(image), "label": write(tmp_path / "label.nii.gz", column(BODIES))}])


def test_messages_have_the_numbers_of_the_file():
    """SPIDER counts from the lowest lumbar vertebra, which is L6 here, and has no number for S1."""
    channels = encode(column([25, 24, 26]))  # L6 above L5
    expected = "L6 (1) lies 8 mm above L5 (2), which should be the other way round. Correct the numbers."
    assert order_problems(channels, OBLIQUE, "spider") == [expected]
    (line,) = order_problems(encode(column([26, 24])), OBLIQUE, "spider")
    assert line.startswith("S1 lies 8 mm above L5 (1), which")


def test_good_labels_pass(tmp_path):
    image = write(tmp_path / "scan.nii.gz", np.zeros((4, 22, 3), np.int16))
    check_labels([{"image": image, "label": write(tmp_path / "verse.nii.gz", column(BODIES))}])
    check_labels([{"image": image, "label": write(tmp_path / "channel.nii.gz", column([6, 7, 8, 9]))}], label_scheme="channel")
    check_labels([{"image": image, "label": str(tmp_path / "channel.nii.gz"), "label_scheme": "channel"}])
