"""Measure masks: of this bundle, corrected by hand or drawn by somebody else."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from tqdm import tqdm

from scripts.common.errors import CallError, UserError, shown
from scripts.common.files import write_whole
from scripts.common.preflight import check_files, check_writable
from scripts.common.tables import write_rows
from scripts.data.find import LABEL_POSTFIX, case_name, find_image, find_masks
from scripts.data.scans import read_scan
from scripts.data.volumes import check_on_grid, read_volume
from scripts.figures import save_figure
from scripts.labels import encode
from scripts.measure.picture import measures_figure
from scripts.measure.spine import SpineMeasures, measure_spine


def measure(
    dataset_dir: str | Path, output_dir: str | Path, prediction: str | Path = "", image: str | Path = "", label_scheme: str = "verse"
) -> list[dict]:
    """`measures.csv`, a row per mask and structure, and `spines.csv`, a row per mask (`measure_spine`); a picture where there is a scan.

    The scan of a mask is the one that its report names, or the one beside it with its name without `_seg`.

    Args:
        dataset_dir: folder with masks; those below it are measured too.
        output_dir: for tables and pictures `<stem>_measures.png`, in the same folders as the masks.
        prediction: one mask instead of a folder.
        image: its scan.
        label_scheme: of the numbers in the masks.

    Returns:
        the rows of `measures.csv`.

    Raises:
        CallError: if there is no mask, or a file is not there.
        UserError: after the others, for masks that cannot be read or do not fit their scan.
    """
    if image and not prediction:
        raise CallError("measure takes --image, a scan, with --prediction, its mask; --dataset_dir takes a folder of masks")
    check_files(prediction=prediction, image=image)
    root = Path(prediction).parent if prediction else Path(dataset_dir)
    masks = [Path(prediction)] if prediction else find_masks(dataset_dir)
    check_writable(str(output_dir), "output_dir")
    structures, spines, failed = [], [], []
    for mask in tqdm(masks, desc="measure", unit="mask"):
        name = mask.relative_to(root)
        try:
            measures = _measure_one(mask, Path(image) if image else scan_of(mask), Path(output_dir) / name.parent, label_scheme)
        except CallError:
            raise
        except UserError as error:
            failed.append(str(error))
            continue
        structures += [{"mask": name.as_posix(), "name": structure, **row} for structure, row in measures.structures.items()]
        spines.append({"mask": name.as_posix(), **measures.spine})
    for table, rows in (("measures.csv", structures), ("spines.csv", spines)):
        if rows:
            print(shown(write_whole(Path(output_dir) / table, partial(write_rows, rows))))
    if failed:
        raise UserError("\n".join(failed))
    return structures


def _measure_one(mask: Path, scan: Path | None, folder: Path, label_scheme: str) -> SpineMeasures:
    """Measures of a mask, and their picture in `folder`."""
    volume = read_volume(mask)
    label = encode(volume.data, str(mask), label_scheme)
    measures = measure_spine(label, volume.affine)
    if scan:
        image = read_scan(scan)
        check_on_grid(mask, volume, scan, image)
        name = case_name(mask).removesuffix(LABEL_POSTFIX)
        save_figure(measures_figure(image.data, label, volume.affine, measures, shown(name)), folder / f"{name}_measures.png")
    return measures


def scan_of(mask: Path) -> Path | None:
    """The scan that the report beside a mask names, or the one beside it; None if there is neither."""
    report = mask.with_name(f"{case_name(mask)}.json")
    try:
        source = Path(json.loads(report.read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return find_image(mask)  # no report, or not one of ours
    return source if source.exists() else find_image(mask)
