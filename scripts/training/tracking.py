"""Send parameters, config and figures to an experiment tracker, besides the curves. `--tracking mlflow` turns it on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes a second to import


def trackers(engine: Engine) -> list[MLFlowHandler]:
    """Return the running trackers of an engine. `--tracking` adds them to the handlers after ours, so we have to look for them."""
    attached = (getattr(handler, "__self__", None) for handler, *_ in engine._event_handlers[Events.STARTED])
    return [h for h in attached if isinstance(h, MLFlowHandler) and h.cur_run is not None]


def track_figure(engine: Engine, figure: Figure, name: str) -> None:
    """Send a figure to the trackers of this engine, into a folder per epoch."""
    for tracker in trackers(engine):
        tracker.client.log_figure(tracker.cur_run.info.run_id, figure, f"figures/epoch_{engine.state.epoch:04d}/{name}.png")


class TrackedRun:
    """Send the parameters of a training and its config, as it is executed, to its trackers, if there are any.

    Args:
        parameters: names and values.
        output_dir: folder to which MONAI writes the config, `config_*.json`.
    """

    def __init__(self, parameters: Mapping[str, Any], output_dir: str) -> None:
        self.parameters = dict(parameters)
        self.output_dir = Path(output_dir)
        self.sent = False

    def attach(self, engine: Engine) -> None:
        # not earlier: the trackers open their run when the training starts, after our handlers
        engine.add_event_handler(Events.EPOCH_STARTED, self.send)

    def send(self, engine: Engine) -> None:
        for tracker in [] if self.sent else trackers(engine):
            run = tracker.client.get_run(tracker.cur_run.info.run_id)
            for name, value in self.parameters.items():
                if name not in run.data.params:  # a resumed run keeps its first values, as MLflow refuses others
                    tracker.client.log_param(run.info.run_id, name, value)
            for config in sorted(self.output_dir.glob("config_*.json"))[-1:]:
                tracker.client.log_artifact(run.info.run_id, str(config))
        self.sent = True
