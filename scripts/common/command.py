"""What surrounds a command: overrides that nothing reads are refused, and errors are one line."""

from __future__ import annotations

import inspect
import pydoc
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from scripts.common.errors import CallError, did_you_mean, show_tracebacks
from scripts.common.preflight import is_true

# what MONAI and its clients read or set, though no item of a config refers to it
CLIENT_KEYS = {"imports", "train", "validate", "_meta_", *DEFAULT_MLFLOW_SETTINGS["configs"]}


def begin(debug: bool | str = False) -> None:
    """First step of every config, in `initialize`.

    Args:
        debug: True or False: errors of the user come with a traceback.

    Raises:
        CallError: for an override that nothing in the config reads; MONAI takes any name.
    """
    show_tracebacks(is_true(debug))
    if is_command() and not is_true(debug):
        sys.excepthook = one_line
    if workflow := _running_workflow():
        check_overrides(workflow.parser.config, {workflow.init_id, workflow.run_id, workflow.final_id}, workflow.config_root_path)


def is_command() -> bool:
    """True where `python -m monai.bundle` runs the config, not a program that has other plans with its hooks and signals."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def _running_workflow() -> ConfigWorkflow | None:
    """The workflow whose config is being evaluated: an item of a config cannot refer to the whole of it."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), ConfigWorkflow):
        frame = frame.f_back
    return frame.f_locals["self"] if frame else None


def check_overrides(config: dict[str, Any], run_ids: set[str], config_dir: Path) -> None:
    """
    Args:
        config: of a workflow, with its overrides.
        run_ids: keys that it runs.
        config_dir: the folder with the config files.

    Raises:
        CallError: for a top-level key that no item refers to, that no client reads and that no config file holds like this.
    """
    names = {name for text in _texts(config) for name in re.findall(r"@(\w+)", text)}
    unread = config.keys() - names - CLIENT_KEYS - run_ids
    for file in sorted(config_dir.glob("*.[jy]*")):
        if unread:  # as written, it is another command, or serves a key that is overridden
            written = ConfigParser.load_config_file(file)
            unread = {key for key in unread if key not in written or _plain(written[key]) != _plain(config[key])}
    for key in sorted(unread):
        raise CallError(f"--{key}: nothing in this config reads it.{did_you_mean(key, names & config.keys(), prefix='--')}")


def _plain(item: Any) -> str:
    return repr(item).replace("#", "::")  # as MONAI writes ids


def _texts(item: Any) -> Iterator[str]:
    """All strings in a config, at any depth."""
    if isinstance(item, str):
        yield item
    elif isinstance(item, (dict, list)):
        for value in item.values() if isinstance(item, dict) else item:
            yield from _texts(value)


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of a command. Before an engine runs, an error comes from the call: it is one line, without MONAI's wrapping.

    What happens within a run that nobody foresaw keeps its traceback.
    """
    if kind is KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    frames = (frame for cause in causes for frame, _ in traceback.walk_tb(cause.__traceback__))
    if any(str(frame.f_globals.get("__name__")).startswith("ignite.engine") for frame in frames):
        sys.__excepthook__(kind, error, trace)
        return
    what = " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__
    print(f"{what}.{_near_argument(causes)} (--debug True shows where)", file=sys.stderr)


def _near_argument(causes: list[BaseException]) -> str:
    """The nearest argument of the class or function that got one which it does not know."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(causes[-1]))
    wrapped = [re.search(r"Failed to instantiate component '([\w.]+)'", str(cause)) for cause in causes]
    if not unknown or not any(wrapped):
        return ""
    component = pydoc.locate([match[1] for match in wrapped if match][-1])
    return did_you_mean(unknown[1], inspect.signature(component).parameters)
