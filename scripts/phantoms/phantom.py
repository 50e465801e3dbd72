"""Draw phantoms: realistic lumbar spine MRI from a seed, with labels and exact truth, for training, tests and the demo."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from scripts.common.errors import CallError, counted, shown
from scripts.common.files import write_whole
from scripts.common.knobs import is_number
from scripts.common.preflight import check_writable
from scripts.data.datalist import read_datalist, write_datalist
from scripts.data.masks import write_nifti
from scripts.labels import label_table
from scripts.phantoms.anatomy import Spine, Vertebra, build_spine, rotation
from scripts.phantoms.image import CONTRASTS, Grid, render
from scripts.phantoms.truth import spine_truth

SCOLIOSIS_DEG = (10.0, 40.0)  # Cobb angles drawn at random; from 10 degrees on a curve is called a scoliosis
# files of a cohort, in its folder
OWN_FILE = re.compile(rf"(?:training|validation|testing)/phantom_\d{{4,}}_(?:{'|'.join(CONTRASTS)}|seg)\.nii\.gz")
# voxel orders of sagittal acquisitions: in-plane axes first, or slices first
VOXEL_ORDERS = ("PIR", "ASL", "AIR", "PSR", "SAL", "IPL", "RPI", "LAS", "RAS")


@dataclass(frozen=True)
class Phantom:
    """A drawn scan."""

    image: np.ndarray  # int16, three axes in the scan's voxel order
    label: np.ndarray  # uint8, VerSe numbers, same shape
    affine: np.ndarray  # (4, 4), voxel indices to RAS mm
    contrast: str  # T1w, T2w or STIR
    truth: dict[str, Any]  # see truth.spine_truth; also seed, contrast and lumbar


def draw_phantom(
    seed: int,
    *,
    contrast: str | None = None,
    lumbar: int = 5,
    wedged: Mapping[str, float] | None = None,
    slipped: Mapping[str, float] | None = None,
    scoliosis: float = 0.0,
    spacing_mm: tuple[float, float] | None = None,
    shape: tuple[int, int, int] | None = None,
    oblique_deg: float = 6.0,
    view: str | None = None,
    order: str | None = None,
) -> Phantom:
    """Draw a scan. The patient depends on the seed alone: `contrast`, spacing, shape, view and order do not change the anatomy.

    Args:
        seed: the same seed and options give identical arrays.
        contrast: T1w, T2w or STIR; None draws one.
        lumbar: number of lumbar vertebrae: 4, 5 or 6.
        wedged: share of the anterior height that a level has lost, e.g. {"L1": 0.3}.
        slipped: anterior shift in mm of a level on the one below, e.g. {"L4": 6.0}.
        scoliosis: Cobb angle in degrees that a thoracolumbar curve adds, positive if it is convex to the left.
        spacing_mm: in-plane and slice spacing; None draws 0.85-1.2 and 3.5-4.5.
        shape: slices, voxels posterior to anterior, voxels inferior to superior; None draws a typical field of view.
        oblique_deg: largest rotation of the acquisition about each axis.
        view: vertebra in the middle of the field of view; None draws a lumbar field of view.
        order: voxel order of the arrays as nibabel axis codes, e.g. "PIR"; None draws one.

    Raises:
        CallError: for an unknown contrast or order, or impossible anatomy.
    """
    for name, value, count in (("spacing_mm", spacing_mm, 2), ("shape", shape, 3)):
        if value is not None and not (isinstance(value, Sequence) and len(value) == count and all(is_number(v) and v > 0 for v in value)):
            raise CallError(f"{name} = {value}: {count} numbers above 0 are needed")
    if not is_number(oblique_deg):
        raise CallError(f"oblique_deg = {oblique_deg}: a number is needed")
    if contrast not in (None, *CONTRASTS):
        raise CallError(f"contrast '{contrast}' does not exist; choose one of {', '.join(CONTRASTS)}")
    # independent streams, so that an option only changes what it names
    patient, scanner, painter = (np.random.default_rng([seed, stream]) for stream in range(3))
    spine = build_spine(patient, lumbar=lumbar, wedged=wedged, slipped=slipped, scoliosis=scoliosis)
    drawn_contrast = CONTRASTS[scanner.choice(len(CONTRASTS), p=[0.3, 0.5, 0.2])]
    drawn_order = VOXEL_ORDERS[scanner.integers(len(VOXEL_ORDERS))]
    contrast, order = contrast or drawn_contrast, order or drawn_order
    if view and view not in (names := [v.name for v in spine.vertebrae]):
        raise CallError(f"view '{view}': this phantom has {', '.join(names)}")
    grid = _draw_grid(scanner, spine, spacing_mm, shape, oblique_deg, view)
    image, label = render(spine, grid, contrast, painter)

    complete = [v.name for v in spine.vertebrae if _is_inside(v, grid)]
    truth = {"seed": seed, "contrast": contrast, "lumbar": lumbar, **spine_truth(spine, complete)}
    return _reordered(Phantom(image, label, grid.affine, contrast, truth), order)


def _draw_grid(
    rng: np.random.Generator,
    spine: Spine,
    spacing_mm: tuple[float, float] | None,
    shape: tuple[int, int, int] | None,
    oblique_deg: float,
    view: str | None,
) -> Grid:
    """Draw the voxels of the acquisition, with axes right, anterior and superior up to the obliquity."""
    in_plane, slices = rng.uniform(0.85, 1.2), rng.uniform(3.5, 4.5)
    fov_mm = np.array([rng.uniform(58, 74), rng.uniform(200, 230), rng.uniform(255, 300)])
    angles_deg = rng.uniform(-1, 1, 3)
    shift_mm = np.array([rng.normal(0, 3), rng.uniform(-8, 20), rng.uniform(-25, 35)])
    if spacing_mm is not None:
        in_plane, slices = spacing_mm
    spacing = np.array([slices, in_plane, in_plane])
    shape = shape or tuple(int(n) for n in np.rint(fov_mm / spacing))
    centre_mm = spine["L3"].centre_mm + shift_mm if view is None else spine[view].centre_mm

    turns = [rotation(axis, oblique_deg * angle) for axis, angle in enumerate(angles_deg)]
    affine = np.eye(4)
    affine[:3, :3] = turns[0] @ turns[1] @ turns[2] * spacing
    affine[:3, 3] = centre_mm - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def _is_inside(v: Vertebra, grid: Grid) -> bool:
    """Return True if the middle half of a body lies inside the field of view, since sagittal slices often miss its sides."""
    signs = np.array(list(product((-0.5, 0.5), repeat=3)))
    corners_mm = v.centre_mm + signs * [v.width_mm / 2, v.depth_mm, max(v.anterior_mm, v.posterior_mm)] @ v.axes.T
    indices = nib.affines.apply_affine(np.linalg.inv(grid.affine), corners_mm)
    return bool(np.all(indices >= -0.5) and np.all(indices <= np.array(grid.shape) - 0.5))


def _reordered(phantom: Phantom, order: str) -> Phantom:
    """Reorder the axes of a scan, e.g. to "PIR"."""
    try:
        target = nib.orientations.axcodes2ornt(tuple(order))
        change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target)
    except (ValueError, TypeError):
        raise CallError(f"order '{order}' is no voxel order; use three letters like {', '.join(VOXEL_ORDERS)}") from None
    image, label = (np.ascontiguousarray(nib.orientations.apply_orientation(a, change)) for a in (phantom.image, phantom.label))
    affine = phantom.affine @ nib.orientations.inv_ornt_aff(change, phantom.image.shape)
    return Phantom(image, label, affine, phantom.contrast, phantom.truth)


def draw_options(seed: int, anomalies: float = 0.0) -> dict[str, Any]:
    """Draw the options of `draw_phantom` for one patient.

    A share of `anomalies` of the patients has 4 or 6 lumbar vertebrae, a wedge or a slip; independently, the same share has a scoliosis.
    """
    rng = np.random.default_rng([seed, 3])
    is_anomalous, kind = rng.random() < anomalies, rng.integers(3)
    lumbar = int(rng.choice([4, 6]))
    wedged = {str(rng.choice(["T12", "L1", "L2", "L3"])): round(rng.uniform(0.2, 0.45), 2)}
    slipped = {str(rng.choice(["L3", "L4", "L5"])): round(rng.uniform(4, 10), 1)}
    options = ({"lumbar": lumbar}, {"wedged": wedged}, {"slipped": slipped})[kind] if is_anomalous else {}
    if rng.random() < anomalies:
        options = {**options, "scoliosis": round(float(rng.choice([-1, 1]) * rng.uniform(*SCOLIOSIS_DEG)), 1)}
    return options


def write_cohort(
    output_dir: str | Path,
    *,
    training: int = 24,
    validation: int = 4,
    testing: int = 4,
    seed: int = 0,
    anomalies: float = 0.0,
    workers: int = 1,
    phantom_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write phantoms as `<split>/phantom_0001_T2w.nii.gz`, `..._seg.nii.gz` and `..._truth.json`, and their datalist.

    Args:
        output_dir: folder of the cohort; existing phantoms in it are replaced.
        training, validation, testing: number of phantoms per split.
        seed: the same arguments give the same arrays.
        anomalies: share of phantoms with 4 or 6 lumbar vertebrae, a wedge or a slip; independently, the same share has a scoliosis.
        workers: number of processes.
        phantom_options, options: passed on to `draw_phantom` for every phantom, e.g. `shape`.

    Returns:
        path of `datalist.json`.
    """
    output_dir = Path(output_dir)
    options = {**options, **(phantom_options or {})}
    file = output_dir / "datalist.json"
    earlier = _own_files(file)
    draw_phantom(seed, **{**options, "shape": (1, 2, 2)})  # refuses impossible options before anything is written
    check_writable(str(output_dir), "dataset_dir")
    splits = ["training"] * training + ["validation"] * validation + ["testing"] * testing
    cases = [(f"{split}/phantom_{i + 1:04d}", seed * 100_000 + i) for i, split in enumerate(splits)]
    for split in dict.fromkeys(splits):
        (output_dir / split).mkdir(parents=True, exist_ok=True)
    write = partial(_write_case, output_dir, anomalies, options)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            entries = list(tqdm(pool.map(write, cases), total=len(cases), desc="phantoms", unit="scan"))
    else:
        entries = [write(case) for case in tqdm(cases, desc="phantoms", unit="scan")]

    datalist: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "testing": []}
    for split, entry in zip(splits, entries, strict=True):
        datalist[split].append(entry)
    for name in earlier - {entry[key] for entry in entries for key in ("image", "label")}:
        (output_dir / name).unlink(missing_ok=True)
        (output_dir / name.replace("_seg.nii.gz", "_truth.json")).unlink(missing_ok=True)
    write_datalist(datalist, file)
    print(shown(f"{file}: {counted(entries, 'phantom')}"))
    return file


def _own_files(datalist: Path) -> set[str]:
    """List the images and labels of an earlier cohort, relative to the folder of its datalist.

    Raises:
        CallError: if the datalist names other files than those of a cohort, as it would be lost.
    """
    folder = datalist.parent
    splits = read_datalist(datalist, folder, must_exist=False, allow_outside=True) if datalist.is_file() else {}
    entries = [entry for of_split in splits.values() for entry in of_split]
    files = {Path(os.path.relpath(entry[key], folder)).as_posix() for entry in entries for key in ("image", "label") if entry.get(key)}
    if any(entry.get("source") != "phantom" for entry in entries) or not all(map(OWN_FILE.fullmatch, files)):
        raise CallError(f"{datalist} lists scans that are no phantoms of this folder: give another --dataset_dir, the phantoms' own.")
    return files


def _write_case(output_dir: Path, anomalies: float, options: Mapping[str, Any], case: tuple[str, int]) -> dict[str, Any]:
    """Draw and write one phantom, and return its entry of the datalist."""
    stem, seed = case
    phantom = draw_phantom(seed, **{**draw_options(seed, anomalies), **options})
    names = {"image": f"{stem}_{phantom.contrast}.nii.gz", "label": f"{stem}_seg.nii.gz"}
    for contrast in set(CONTRASTS) - {phantom.contrast}:  # left by an earlier cohort, it would pass for a scan of this patient
        (output_dir / f"{stem}_{contrast}.nii.gz").unlink(missing_ok=True)
    write_phantom(phantom, output_dir / names["image"], output_dir / names["label"], output_dir / f"{stem}_truth.json")
    labelled = [s.verse for s in label_table()[1:]]  # all structures: a level that is not in the label is not in the scan
    return {**names, "source": "phantom", "labelled": labelled, "patient": Path(stem).name, "label_scheme": "verse"}


def write_phantom(phantom: Phantom, image_file: Path, label_file: Path, truth_file: Path) -> None:
    """Write the image and the label as NIfTI and the truth as JSON."""
    for file, array in ((image_file, phantom.image), (label_file, phantom.label)):
        write_nifti(array, phantom.affine, file)
    text = json.dumps(phantom.truth, indent=1, default=np.ndarray.tolist)
    write_whole(truth_file, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
