"""Serve the best weights of a training that MONAI Label runs: it takes them from the folder of the bundle."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

from scripts.common.files import write_whole


def is_served(bundle_root: str | Path) -> bool:
    """Return True if MONAI Label runs this bundle, which then lies in the folder of its app."""
    app = os.environ.get("MONAI_LABEL_APP_DIR")  # MONAI Label tells a training nothing else about itself
    return bool(app) and Path(app).absolute() in Path(bundle_root).absolute().parents


class ServeBest:
    """Copy the best weights to the file that MONAI Label serves, after every validation that found better ones.

    Attach it to the evaluator behind the `CheckpointSaver`. The file is replaced as a whole: the server may be reading it, and its user
    may stop a training at any time.

    Args:
        source: file that the saver writes.
        target: file that is served.
    """

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target = Path(source), Path(target)
        self.copied = 0  # time stamp (ns) of the weights copied last

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.copy)

    def copy(self, engine: Engine) -> None:
        written = self.source.stat().st_mtime_ns if self.source.exists() and idist.get_rank() == 0 else 0
        if written > self.copied:
            write_whole(self.target, partial(shutil.copyfile, self.source))
            self.copied = written
