"""Write the names and colours of the numbers in masks for ITK-SNAP, 3D Slicer and FreeView."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from scripts.common.errors import shown
from scripts.common.files import write_whole
from scripts.common.preflight import check_writable
from scripts.figures import structure_color
from scripts.labels import anatomical_order, check_scheme, label_table

EXCEPTIONS = {"spider": ", in masks without an L6: with one, all but the lowest are one higher"}  # to the meaning of a scheme's numbers


def viewer_labels(output_dir: str | Path, label_scheme: str = "") -> list[Path]:
    """Write label descriptions for ITK-SNAP and a colour table for 3D Slicer and FreeView; print and return their paths.

    They are `<scheme>_itksnap.txt` and `<scheme>_slicer.ctbl`. Colours are those of the pictures. Where two structures share a number, as
    L5/S1 and L6/S1 in `totalspineseg`, it has the name of the first.

    Args:
        output_dir: created if missing.
        label_scheme: `verse`, which is the default, `channel`, `spider` or `totalspineseg`.

    Raises:
        CallError: for another scheme.
    """
    scheme = label_scheme or "verse"
    check_scheme(scheme)
    check_writable(str(output_dir), "output_dir")
    rows: dict[int, tuple[str, list[int]]] = {}
    for channel in anatomical_order():
        structure = label_table()[channel]
        number = getattr(structure, scheme)
        if number and not (scheme == "spider" and structure.name.startswith("L6")):
            name = "_".join(structure.name.replace('"', "").split())  # names in a table of one's own may hold quotes and spaces
            rows.setdefault(number, (name, [round(255 * share) for share in structure_color(channel)]))
    about = f"numbers of the label scheme {scheme}{EXCEPTIONS.get(scheme, '')}"
    snap = [f"# ITK-SNAP label descriptions: {about}", '0 0 0 0 0 0 0 "Clear Label"']
    slicer = [f"# 3D Slicer colour table: {about}", "0 background 0 0 0 0"]
    for number, (name, (r, g, b)) in sorted(rows.items()):
        snap.append(f'{number} {r} {g} {b} 1 1 1 "{name}"')
        slicer.append(f"{number} {name} {r} {g} {b} 255")
    written = []
    for file, lines in ((f"{scheme}_itksnap.txt", snap), (f"{scheme}_slicer.ctbl", slicer)):
        text = "\n".join(lines) + "\n"
        written.append(write_whole(Path(output_dir) / file, partial(Path.write_text, data=text, encoding="utf-8")))
    print(*map(shown, written), sep="\n")
    return written
