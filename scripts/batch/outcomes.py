"""Outcomes of a run: a table of the scans that failed, a closing line, and the exit code."""

from __future__ import annotations

import csv
import os
from collections import Counter
from functools import partial
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

from scripts.common.distributed import gathered
from scripts.common.errors import UserError, shown
from scripts.common.files import alone_in, write_whole
from scripts.common.tables import check_column, read_rows, write_rows

FAILURES = "failures.csv"
COLUMNS = ("file", "reason", "fix")


class Outcomes:
    """Ignite handler that collects how every scan has ended, for `failures.csv` (columns `file`, `reason`, `fix`) and the closing line.

    The table keeps the rows of earlier runs on scans that this run has not looked at; without failures there is no table.

    Args:
        output_dir: folder of the table.
    """

    def __init__(self, output_dir: str) -> None:
        self.table = Path(output_dir) / FAILURES
        self.rows: dict[str, list[dict]] = {}  # one row for every scan of this process
        self.any_failed = False  # in any process
        self.closing_line = ""  # only in the first process

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.restart)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def restart(self) -> None:
        """Forget the last run, and refuse a table of an earlier run that could not be added to.

        Raises:
            UserError: for such a table.
        """
        self.rows.clear()
        check_column(self.table, "file")

    def segmented(self, scan: str) -> None:
        self.rows[scan] = [{"file": scan, "outcome": "segmented"}]

    def skipped(self, scan: str) -> None:
        self.rows[scan] = [{"file": scan, "outcome": "skipped"}]

    def failed(self, scan: str, reason: str, fix: str) -> None:
        print(shown(f"{scan}: {reason}. {fix}"))
        self.rows[scan] = [{"file": scan, "outcome": "failed", "reason": reason, "fix": fix}]
        if idist.get_world_size() == 1:  # at once, because the run may be killed
            self._write([row for rows in self.rows.values() for row in rows])

    def close(self, engine: Engine) -> None:
        rows = gathered(self.rows)
        count = Counter(row["outcome"] for row in rows)
        self.any_failed = bool(count["failed"])
        if idist.get_rank() == 0:
            problem = self._write(rows)
            line = f"{count['segmented']} segmented, {count['skipped']} skipped (already done), {count['failed']} failed"
            place = self.table if count["failed"] else self.table.parent
            self.closing_line = f"{line}: {problem or f'see {place}'}"

    def end(self) -> None:
        """Print the closing line.

        Raises:
            SystemExit: with the code 1 if a scan has failed.
        """
        if self.closing_line:
            print(self.closing_line)
        if self.any_failed:
            raise SystemExit(1)

    def _write(self, rows: list[dict]) -> str:
        """Write or remove the table; return why that failed, which must not end the run, or an empty text."""
        try:
            looked_at = {_place(row["file"]) for row in rows}
            failures = [{k: row[k] for k in COLUMNS} for row in rows if row["outcome"] == "failed"]
            with alone_in(self.table.parent):
                earlier = [row for row in read_rows(self.table, "file") if os.path.lexists(row["file"] or "")]
                earlier = [row for row in earlier if _place(row["file"]) not in looked_at]
                failures = earlier + failures
                if failures:
                    write_whole(self.table, partial(write_rows, failures))
                else:
                    self.table.unlink(missing_ok=True)
        except UserError as error:
            return f"{error} The lines above say which scans failed and why."
        except (OSError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            return f"{self.table} cannot be written ({reason}). The lines above say which scans failed and why."
        return ""


def _place(file: str) -> str:
    """Return a path with its folder resolved, but not the file: that may be a link to another scan of the run."""
    return os.path.join(os.path.realpath(os.path.dirname(file)), os.path.basename(file))
