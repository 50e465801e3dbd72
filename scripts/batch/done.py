"""Find out which scans are done: reports record what masks were made from, which is compared before a scan is read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.common.command import running_workflow
from scripts.common.files import is_whole_gzip, sha256_of
from scripts.data.find import files_of_voxels, is_no_slice
from scripts.data.masks import MaskLayout, beside, is_report, read_report
from scripts.data.own_masks import other_scan
from scripts.labels import METADATA_FILE, label_table

SECTIONS = ("network_def", "preprocessing", "inferer", "postprocessing")  # sections of a config that change masks


class Done:
    """Check that tells whether a scan already has whole outputs, made from the present weights, settings and scan.

    A mask may have been corrected by hand since: it counts as done as long as it is a whole file.

    Args:
        output_dir, data_root_dir: see `MaskLayout`.
        weights: file with the weights.
        settings: knobs that change masks, with their values.
        config_file: config with the `SECTIONS`, used unless the running workflow, which has overrides too, holds them itself.
        figures: True if a scan needs its figure to be done.
        overwrite: True if no scan counts as done.
    """

    def __init__(
        self, output_dir: str, data_root_dir: str, weights: str, settings: Mapping[str, Any], config_file: str,
        figures: bool = True, overwrite: bool = False,
    ) -> None:  # fmt: skip
        self.layout = MaskLayout(output_dir, data_root_dir)
        self.weights = weights
        self.settings = {name: _plain(value) for name, value in settings.items()}
        workflow = running_workflow()
        running = workflow.parser.config if workflow else {}
        config = running if running.keys() >= {*SECTIONS} else ConfigParser.load_config_file(config_file)
        self.sections = {key: config[key] for key in SECTIONS}
        self.figures = figures
        self.overwrite = overwrite

    @cached_property
    def of_run(self) -> dict[str, str]:
        """The sha256 of the weights, and that of everything else that is the same for all scans."""
        version = json.loads(METADATA_FILE.read_text(encoding="utf-8"))["version"]
        parts = [version, self.settings, self.sections, [str(s) for s in label_table()]]
        settings = json.dumps(parts, sort_keys=True, default=str).replace("#", "::")  # a workflow writes ids so, a file may not
        return {
            "weights_sha256": sha256_of(self.weights),
            "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        }

    def made_from(self, scan: str | Path) -> dict[str, str]:
        """Return what a mask of `scan` (a file or a folder with a DICOM series) would be made from now; all values are text.

        Raises:
            OSError: if the scan is not there.
        """
        path = Path(scan)
        slices = [p for p in path.iterdir() if p.is_file() and not is_no_slice(p)] if path.is_dir() else []  # masks may lie beside slices
        files = [p.stat() for p in (slices or [path, *files_of_voxels(path)])]
        identity = f"{sum(f.st_size for f in files)} bytes, modified at {max((f.st_mtime_ns for f in files), default=0)} ns"
        return {**self.of_run, "scan": identity}

    def __call__(self, scan: str | Path, made_from: Mapping[str, str]) -> bool:
        """Return True if mask, report and, if wanted, figure are there and whole, and were made from `made_from`."""
        if self.overwrite:
            return False
        mask = self.layout.filename(str(scan))
        report = read_report(mask)
        is_mine = report.get("made_from") == dict(made_from) and is_report(report) and not other_scan(report, scan)
        return is_mine and (not self.figures or is_whole_png(beside(mask, ".png"))) and is_whole_gzip(mask)


def _plain(value: Any) -> Any:
    """Convert a setting to one spelling: 300 becomes 300.0, a tuple a list."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, (int, float)) else value


def is_whole_png(path: Path) -> bool:
    """Return True if a PNG file has its signature and its last chunk."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content[-8:-4] == b"IEND"
