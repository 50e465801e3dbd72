"""Whatever a header, a datalist or a label map holds: the right answer or one clear line, never a crash."""

from __future__ import annotations

import gzip
import json
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scripts.common.errors import ScanError, UserError
from scripts.data.check_labels import label_problems
from scripts.data.complete_labels import BEYOND, NO_BODY, NO_DISC, UNKNOWN, complete_labels
from scripts.data.datalist import inference_entries, read_datalist, split_entries, training_entries
from scripts.data.scans import SPACING_MM, read_scan
from scripts.data.volumes import Volume
from scripts.labels import SCHEMES, decode, encode, label_table

# the same cases on every machine; a case may take 5 s
SLOW_MS = 5000
options = {"derandomize": True, "deadline": SLOW_MS, "suppress_health_check": [HealthCheck.too_slow], "database": None}
many, some = settings(max_examples=1500, **options), settings(max_examples=300, **options)

HEADER = nib.Nifti1Header.template_dtype
FIELDS = sorted(set(HEADER.names) - {"sizeof_hdr"})
SHAPE = (5, 6, 7)


@contextmanager
def one_clear_line(path: Path, kind: type[UserError] = UserError) -> Iterator[None]:
    """Whatever is raised is of this kind, names the file and is one line."""
    raised = str(path)
    try:
        yield
    except kind as error:
        raised = str(error)
    assert str(path) in raised
    assert "\n" not in raised


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def nifti(folder) -> bytes:
    voxels = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([3.0, 1, 1, 1]))
    nib.save(image, folder / "scan.nii")
    return (folder / "scan.nii").read_bytes()


@st.composite
def header_changes(draw) -> list[tuple[str, int, bytes]]:
    """Up to four fields, an element of each, and its new bytes: numbers that mean something as often as any bits."""
    changes = []
    for name in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4)):
        base, shape = HEADER[name].subdtype or (HEADER[name], ())
        if base.kind == "f":
            value = draw(st.one_of(st.sampled_from([0.0, -1.0, 1e-30, 1e30, np.nan, np.inf]), st.floats(width=32)))
        elif base.kind in "iu":
            value = draw(st.one_of(st.integers(-2, 9), st.sampled_from([16, 64, 128, 256, 512, 1024, 2048, 32767])))
            value = int(np.array(value).astype(base))
        else:
            value = draw(st.binary(max_size=base.itemsize))
        element = draw(st.integers(0, int(np.prod(shape, dtype=int)) - 1)) if shape else 0
        changes.append((name, element, np.array(value).astype(base).tobytes()))
    return changes


def check_scan(path: Path) -> None:
    with one_clear_line(path, ScanError):
        volume = read_scan(path)
        assert volume.data.dtype == np.float32
        assert volume.data.ndim == 3
        assert np.isfinite(volume.data).all()
        assert volume.data.min() < volume.data.max()
        spacing = nib.affines.voxel_sizes(volume.affine)
        assert SPACING_MM[0] <= spacing.min()
        assert spacing.max() <= SPACING_MM[1]
        assert all("\n" not in note for note in volume.notes)


@many
@given(changes=header_changes())
def test_nifti_header(folder, nifti, changes):
    content = bytearray(nifti)
    for name, element, value in changes:
        start = HEADER.fields[name][1] + element * len(value)
        content[start : start + len(value)] = value
    path = folder / "changed.nii"
    path.write_bytes(content)
    check_scan(path)


@some
@given(cut=st.integers(0, 800), place=st.integers(0, 800), noise=st.binary(max_size=8), zipped=st.booleans())
def test_damaged_file(folder, nifti, cut, place, noise, zipped):
    content = bytearray(gzip.compress(nifti, mtime=0) if zipped else nifti)
    content[place : place + len(noise)] = noise
    path = folder / ("damaged.nii.gz" if zipped else "damaged.nii")
    path.write_bytes(content[: max(0, len(content) - cut)])
    check_scan(path)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PATHS = st.one_of(st.sampled_from(["scan.nii", "scan.nii", "../x.nii", "/etc/passwd", "", ".", "a\0b", "x" * 300]), st.text(max_size=5))
ENTRIES = st.fixed_dictionaries(
    {"image": PATHS},
    optional={
        "label": PATHS | ANY_JSON,
        "labelled": st.lists(st.sampled_from([20, 21, 24, 26, 120, 99]), max_size=4) | ANY_JSON,
        "source": st.text(max_size=4) | ANY_JSON,
        "patient": st.text(max_size=4) | ANY_JSON,
        "other": ANY_JSON,
    },
)
LISTS = st.fixed_dictionaries({}, optional={name: st.lists(ENTRIES, max_size=3) | ANY_JSON for name in ("training", "validation", "more")})


@many
@given(content=(LISTS | ANY_JSON).map(json.dumps) | st.text(string.printable, max_size=30))
@example(content="[" * 100_000)
@example(content='{"training": [{"image": "\\ud800"}]}')
def test_datalist(folder, nifti, content):
    path = folder / "list.json"
    path.write_text(content)
    root = folder.absolute()
    for read in (
        lambda: [e for entries in read_datalist(path, folder).values() for e in entries],
        lambda: split_entries(path, folder, "training"),
        lambda: training_entries(path, folder),
        lambda: inference_entries(folder, path),
    ):
        with one_clear_line(path):
            for entry in read():
                assert Path(entry["image"]).is_relative_to(root)
                assert all(isinstance(v, int) for v in entry.get("labelled", []))


def label_maps(values: st.SearchStrategy, dtype: type) -> st.SearchStrategy[np.ndarray]:
    """Boxes of a few values, which may cover each other."""
    corner = st.tuples(*[st.integers(0, n - 1) for n in SHAPE])
    boxes = st.lists(st.tuples(corner, st.tuples(*[st.integers(1, 4)] * 3), values), max_size=6)

    def draw(boxes: list) -> np.ndarray:
        result = np.zeros(SHAPE, dtype)
        for low, size, value in boxes:
            result[tuple(slice(a, a + n) for a, n in zip(low, size))] = value
        return result

    return boxes.map(draw)


@many
@given(
    values=label_maps(st.integers(0, 260), np.int32) | label_maps(st.floats(-3, 300, width=32) | st.just(np.nan), np.float32),
    scheme=st.sampled_from(SCHEMES),
    affine=st.permutations(np.eye(3).tolist()),
)
def test_label_map(values, scheme, affine):
    path = Path("label.nii")
    grid = np.eye(4)
    grid[:3, :3] = affine
    with one_clear_line(path):
        channels, problems = label_problems(Volume(values, grid, str(values.dtype)), str(path), "scan.nii", (SHAPE, grid), scheme)
        assert channels.dtype == np.uint8
        assert channels.max() < len(label_table())
        np.testing.assert_array_equal(channels == 0, np.rint(values) == 0)
        assert all(str(path) in line for line in problems)
        if scheme in ("verse", "channel"):  # the others leave structures out or count from the lowest
            np.testing.assert_array_equal(decode(channels, scheme), np.rint(values))


@settings(some, max_examples=400)
@given(
    label=label_maps(st.integers(0, len(label_table()) - 1), np.uint8),
    more=st.sets(st.integers(1, len(label_table()) - 1), max_size=4),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
)
def test_completed_labels_keep_the_labels(label, more, spacing):
    labelled = np.zeros(len(label_table()), bool)
    labelled[[0, *np.unique(label), *more]] = True
    before = label.copy()
    result, known = complete_labels(label, labelled, spacing)
    np.testing.assert_array_equal(label, before)
    np.testing.assert_array_equal(result[label > 0], label[label > 0])
    assert (known >= labelled).all()
    added = set(np.unique(result[label == 0]).tolist())
    assert added <= {0, UNKNOWN, BEYOND, NO_BODY, NO_DISC, *np.flatnonzero(known & ~labelled).tolist()}
    if len(present := np.unique(label[label > 0])) == 1:
        check_ends(result, label, int(present[0]), labelled, spacing)


def check_ends(result: np.ndarray, label: np.ndarray, only: int, labelled: np.ndarray, spacing: tuple[float, ...]) -> None:
    """Above the only structure nothing is marked if the next one above is labelled, or there is none; the same below."""
    table = label_table()
    group = [s.channel for s in table if s.kind == table[only].kind]
    from_centre = (np.indices(label.shape).T * spacing - (np.argwhere(label == only) * spacing).mean(0)).T  # mm
    far = np.linalg.norm(from_centre, axis=0)
    for upwards in (1, -1):
        follows = group.index(only) - upwards
        if not 0 <= follows < len(group) or labelled[group[follows]]:  # an end-plate may be tilted: to the sides it may reach beyond
            assert not result[(label == 0) & (far > 9) & (upwards * from_centre[2] > 0.9 * far)].any()


@some
@given(values=label_maps(st.integers(0, 25), np.uint8), scheme=st.sampled_from(SCHEMES))
def test_encode_undoes_decode(values, scheme):
    """On what the scheme has a number for, and as long as SPIDER's count starts where the file says."""
    channels = values[values < len(label_table())]
    written = decode(channels, scheme)
    if scheme != "spider":
        kept = written > 0
        again = encode(written, scheme=scheme)
        assert (again[kept] > 0).all()
        np.testing.assert_array_equal(decode(again, scheme), written)
