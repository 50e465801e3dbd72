"""Draw a mask on its scan."""

from __future__ import annotations

from pathlib import Path

from scripts.common.errors import CallError, shown
from scripts.common.preflight import check_files, check_writable
from scripts.data.find import case_name
from scripts.data.masks import read_mask, scan_of
from scripts.data.own_masks import report_as_written
from scripts.data.volumes import on_grid, read_volume
from scripts.figures import case_figure, check_picture, save_figure
from scripts.measure.doubts import picture_note


def visualize(
    prediction: str | Path, output_dir: str | Path, image: str | Path = "", reference: str | Path = "", label_scheme: str = ""
) -> Path:
    """Draw a prediction (and a reference) over its scan into `<output_dir>/<case>.png`; print and return the path.

    The title tells which mask is shown. A picture of another mask of the same scan is replaced, a picture of another scan never.

    Args:
        prediction: mask, on the grid of its scan, in any order of the axes.
        output_dir: created if missing.
        image: the scan; empty: the one that the report beside the mask names, or the one beside the mask.
        reference: label on the same grid, in VerSe numbers unless a report beside it names another scheme.
        label_scheme: scheme of the prediction's values; empty: what the report beside it says, else `verse`.

    Raises:
        CallError: for a file that is not there, or a mask without a scan.
        UserError: for unreadable files, different grids or unknown label values, or a picture of another scan in its place.
    """
    if not prediction:
        raise CallError("visualize needs --prediction, a mask")
    check_files(image=image, prediction=prediction, reference=reference)
    check_writable(str(output_dir), "output_dir")
    image = image or scan_of(Path(prediction))
    if not image:
        raise CallError(f"{prediction}: neither a report that names its scan, nor a scan beside it. Set --image.")
    scan = read_volume(image, series=True)
    labels = []
    for path, scheme in ((prediction, label_scheme), (reference, "")):
        if path:
            mask, _ = read_mask(Path(path), scheme)
            labels.append(on_grid(path, mask, image, scan))
    name = case_name(image)
    reference_label = labels[1] if len(labels) > 1 else None
    path = Path(output_dir) / f"{name}.png"
    check_picture(path, image)
    title = shown(f"{name}: {Path(*Path(prediction).absolute().parts[-2:])}")
    report = report_as_written(Path(prediction))
    words = {"title": title, "note": picture_note(report), "warnings": report.get("warnings", ())}
    figure = case_figure(scan.data, labels[0], scan.affine, reference=reference_label, **words)
    written = save_figure(figure, path, source=str(image))
    print(shown(written))
    return written
