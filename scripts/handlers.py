"""Ignite handlers that write the results of a run: the table of accuracies, and a figure and a report per scan."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents

from scripts.batch.overview import warnings_of, write_overview
from scripts.common.distributed import gathered
from scripts.common.errors import UserError, counted, shown
from scripts.common.files import alone_in, sha256_of, write_json, write_whole
from scripts.common.tables import aligned, check_column, write_rows
from scripts.data.find import case_name, distinct_names, without_postfix
from scripts.data.masks import MaskLayout, beside, reported_masks
from scripts.data.own_masks import is_as_reported, write_report
from scripts.data.scans import read_scan
from scripts.data.volumes import Volume
from scripts.levels.cut import reported_cuts
from scripts.measure.agreement import measure_errors, summarise_errors
from scripts.measure.doubts import picture_note
from scripts.measure.report import fresh_report
from scripts.measure.rows import in_order, spine_row, structure_table
from scripts.metrics import cell, scans_digest, score_structures, summarise, worst_cases

EDITED = (
    "the mask was edited after its report, and the tables describe it as it was before. "
    "To measure it anew, run rename with the name of its lowest body as --lowest."
)
TABLES = ("structures.csv", "spines.csv")  # tables of all masks in a folder


class StructureReport:
    """Write `metrics.csv` (a row per scan and structure) and `metrics.json` (summaries, errors of measures, worst scans, sha256 of scans
    and weights), and print the summaries.

    Attach it to an evaluator whose output holds `pred` and `label` as label maps (1XYZ, channel indices) on the label's own grid.

    Args:
        output_dir: folder for the two files.
        weights: file of the weights that are scored.
    """

    def __init__(self, output_dir: str, weights: str) -> None:
        self.output_dir, self.weights = Path(output_dir), weights
        self.rows: dict[tuple[str, str], list[dict]] = {}  # by scan and label: a scan may have labels of two raters
        self.errors: dict[tuple[str, str], list[dict]] = {}  # of measures, by scan and label

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.restart)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.score)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def restart(self) -> None:
        self.rows.clear()
        self.errors.clear()

    def score(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output):
            scan, label, pred = str(batch["image"].meta["filename_or_obj"]), output["label"], output["pred"]
            key = (scan, str(label.meta["filename_or_obj"]))
            both = label[0].cpu().numpy(), pred[0].cpu().numpy()
            self.errors[key] = measure_errors(*both, label.affine.numpy(), reported_cuts(pred.meta.get("report", {})))
            rows = score_structures(*both, label.pixdim.tolist())
            case = {"source": batch.get("source", ""), "image": scan}
            self.rows[key] = [{**case, **row} for row in rows]

    def write(self, engine: Engine) -> None:
        rows, errors = gathered(self.rows), summarise_errors(gathered(self.errors))
        if idist.get_rank() != 0:
            return
        if not rows:
            raise UserError("nothing to score: no label of this split holds a structure")
        names = distinct_names(row["image"] for row in rows)
        rows = [{"case": names[row["image"]], **row} for row in rows]
        table = self.output_dir / "metrics.csv"
        write_whole(table, partial(write_rows, [_csv_row(row) for row in rows]))
        summaries = {"by_structure": summarise(rows, ["structure"]), "by_source": summarise(rows, ["source", "group"])}
        made_from = {"scans_sha256": scans_digest(row["image"] for row in rows), "weights_sha256": sha256_of(self.weights)}
        summary = write_json(
            self.output_dir / "metrics.json", {**summaries, "measures": errors, "worst_cases": worst_cases(rows), **made_from}
        )
        for summarised in filter(None, (*summaries.values(), errors)):
            print("\n" + format_table(summarised))
        print("", table, summary, sep="\n")


def _csv_row(row: dict) -> dict:
    """Return a row of scores for `metrics.csv`: without the path, and with empty distances of a structure that was missed."""
    return {column: "" if value == math.inf else value for column, value in row.items() if column != "image"}


def format_table(rows: list[dict]) -> str:
    """Format rows of `summarise` as aligned text: a line per row, words to the left, numbers to the right."""
    cells = [list(rows[0])] + [[cell(k, v) for k, v in row.items()] for row in rows]
    return aligned(cells, left=[i for i, v in enumerate(rows[0].values()) if isinstance(v, str)])


def stored_scan(batch: dict[str, Any]) -> Volume:
    """Read the scan as it is stored, because the `image` of a batch is preprocessed; once for all handlers of an iteration."""
    if "volume" not in batch:
        batch["volume"] = read_scan(batch["image"].meta["filename_or_obj"])
    return batch["volume"]


def batch_report(batch: dict[str, Any], pred: MetaTensor) -> dict[str, Any]:
    """Make the `fresh_report` on the mask of a batch, once for all handlers of an iteration; empty where the levels were not named."""
    if "report" not in batch:
        notes = batch["image"].meta.get("notes", "").splitlines()
        batch["report"] = fresh_report(pred, stored_scan(batch), notes) if pred.meta.get("report") else {}
    return batch["report"]


class CaseFigures:
    """Draw every scan (or the first few) with the outlines of prediction and, where there is one, reference.

    Attach it to an evaluator whose output holds label maps on the scan's own grid.

    Args:
        output_dir: for `<stem>_seg.png`, in the same folders as the masks; nothing is written if empty.
        data_root_dir: see `MaskLayout`.
        summary_writer: TensorBoard writer that gets the figures at the evaluator's epoch.
        max_cases: the most scans that are drawn in a run.
        enabled: False draws nothing.
    """

    def __init__(
        self, output_dir: str = "", data_root_dir: str = "", summary_writer: Any = None, max_cases: int = 10**9, enabled: bool = True
    ) -> None:
        self.output_dir = output_dir
        self.layout = MaskLayout(output_dir, data_root_dir)
        self.summary_writer = summary_writer
        self.max_cases = max_cases if enabled else 0
        self.drawn = 0
        self.names: dict[str, str] = {}  # by scan: the name of its figure in a tracker, the same in every epoch

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.restart)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.draw)  # within the iteration, so that an error costs this scan only

    def restart(self) -> None:
        self.drawn = 0

    def draw(self, engine: Engine) -> None:
        from scripts.figures import case_figure, figure_to_array, save_figure  # matplotlib takes a second to import
        from scripts.training.tracking import track_figure

        for batch, output in zip(engine.state.batch, engine.state.output):
            if self.drawn >= self.max_cases:
                return
            self.drawn += 1
            source = batch["image"].meta["filename_or_obj"]
            volume = stored_scan(batch)
            reference = output["label"][0].cpu().numpy() if output.get("label") is not None else None
            report = batch_report(batch, output["pred"])
            words = {"title": shown(self.title_of(source)), "note": picture_note(report), "warnings": report.get("warnings", ())}
            figure = case_figure(volume.data, output["pred"][0].cpu().numpy(), volume.affine, reference=reference, **words)
            if self.output_dir:
                mask = self.layout.filename(source)
                save_figure(figure, beside(mask, ".png"))
            name = self.name_of(str(source))
            track_figure(engine, figure, name)
            if self.summary_writer is not None:
                self.summary_writer.add_image(name, figure_to_array(figure), engine.state.epoch, dataformats="HWC")

    def title_of(self, source: str) -> str:
        """Return the stem of a scan with its folders below the one that was searched."""
        return without_postfix(self.layout.filename(source)).relative_to(self.output_dir).as_posix()

    def name_of(self, source: str) -> str:
        """Return the stem of a scan, with as many of its folders as tell it from the other scans that were drawn."""
        if source not in self.names:
            parts, taken = [*Path(source).parent.parts, case_name(source)], {*self.names.values()}
            tails = ["/".join(parts[-depth:]) for depth in range(1, len(parts) + 1)]
            self.names[source] = next(name for name in [*tails, source] if name not in taken)
        return shown(self.names[source])


class CaseReports:
    """Write a report `<stem>_seg.json` beside every mask, and at the end the tables and the overview of all masks.

    A report says how sure the level names are, has volume, signal, measures and uncertainty of every structure, says what to look at, and
    what the mask was made from. At the end the reports of all masks in `output_dir` and below give `structures.csv`, a row per mask and
    structure, `spines.csv`, a row per mask, and `overview.html`, a page with all of them.

    Attach it to an evaluator whose output holds label maps on the scan's own grid with a `report` in their metadata (`NameLevelsd`).
    Attach it behind every handler that writes something for a scan: a scan with a report counts as done.

    Args:
        output_dir, data_root_dir: see `MaskLayout`.
    """

    def __init__(self, output_dir: str, data_root_dir: str = "") -> None:
        self.output_dir = Path(output_dir)
        self.layout = MaskLayout(output_dir, data_root_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.check_tables)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.write_tables)

    def check_tables(self) -> None:
        """Refuse files in the place of the tables that are not tables of this bundle, or were saved in another format.

        Raises:
            UserError: for such a file.
        """
        for name in TABLES:
            check_column(self.output_dir / name, "mask")

    def write(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output):
            source = str(batch["image"].meta["filename_or_obj"])
            report = {"scan": case_name(source), "source": os.path.abspath(source), **batch_report(batch, output["pred"])}
            for warning in report["warnings"]:
                print(shown(f"{source}: {warning}"))
            if "made_from" in batch:
                report["made_from"] = batch["made_from"]
            write_report(self.layout.filename(source), report, output["pred"].meta.get("mask_sha256", ""))
            for key in ("volume", "report"):
                batch.pop(key, None)  # else the scan stays in memory while the next one is read

    def write_tables(self, engine: Engine) -> None:
        idist.barrier()  # until all processes have written their reports
        if idist.get_rank() != 0:
            return
        structures, spines = [], []
        with alone_in(self.output_dir):
            for mask, report in reported_masks(self.output_dir):
                edited = not is_as_reported(mask, report)
                first_columns = {"mask": mask.relative_to(self.output_dir).as_posix(), "edited_since": edited}
                if edited:
                    print(shown(f"{mask}: {EDITED}"))
                structures += structure_table(first_columns, report)
                spines.append({**first_columns, "scan": report.get("source"), **spine_row(report)})
            if not spines:
                return
            for name, rows in zip(TABLES, (structures, spines)):
                write_whole(self.output_dir / name, partial(write_rows, in_order(rows)))
            page = write_overview(self.output_dir, spines)
        doubtful = [row for row in spines if warnings_of(row)]
        print(f"{shown(page)}: {counted(spines, 'mask')}, {len(doubtful)} with warnings")
