"""What surrounds a command: overrides that nothing reads are refused, and errors are one line."""

from __future__ import annotations

import gc
import inspect
import os
import pydoc
import re
import sys
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from scripts.common.errors import CallError, did_you_mean, show_tracebacks
from scripts.common.knobs import check_knobs
from scripts.common.options import is_command, read_options
from scripts.common.preflight import check_bundle_root, is_true

# what MONAI and its clients read or set, though no item of a config refers to it
CLIENT_KEYS = {"imports", "train", "validate", "_meta_", *DEFAULT_MLFLOW_SETTINGS["configs"]}


def begin(debug: bool | str = False) -> None:
    """First step of every config, in `initialize`.

    Args:
        debug: True or False: errors of the user come with a traceback.

    Raises:
        CallError: for an override that nothing in the config reads (MONAI takes any name), a command that it does not have, a number that
            is beyond its limits, a path or a name that is none, or a `bundle_root` that is no bundle.
    """
    show_tracebacks(is_true(debug, "debug"))
    if is_command():
        gc.freeze()  # what is imported stays: to look through it once more would take a second at the end of every command
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # not so where somebody has put another object in its place
                stream.reconfigure(errors="backslashreplace")  # a file name that the console has no letters for ends no batch
        if not is_true(debug, "debug"):
            sys.excepthook = one_line
    if workflow := running_workflow():
        check_overrides(workflow.parser.config, {workflow.init_id, workflow.run_id, workflow.final_id}, workflow.config_root_path)
        check_knobs(workflow.parser.config)
        read_options(workflow.parser)
        if is_command():  # a program may never run what it sets up
            check_command(workflow.parser.config, workflow.run_id)
            check_processes(workflow.parser.config, workflow.init_id)
        check_bundle_root(workflow.parser.get_parsed_content("bundle_root"))


def running_workflow() -> ConfigWorkflow | None:
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
    names = _referred(config)
    unread = config.keys() - names - CLIENT_KEYS - run_ids
    if unread:  # as written, it is another command, or serves a key that is overridden
        for written in _written(config_dir):
            unread = {key for key in unread if key not in written or _plain(written[key]) != _plain(config[key])}
    for key in sorted(unread):
        raise CallError(f"--{key}: nothing in this config reads it.{did_you_mean(key, names & config.keys(), prefix='--')}")


def _written(config_dir: Path) -> Iterator[dict[str, Any]]:
    """What the config files of a folder hold."""
    for file in sorted(config_dir.glob("*")):
        if file.suffix not in (".json", ".yaml", ".yml") or file.name.startswith("."):
            continue
        try:
            written = ConfigParser.load_config_file(file)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # half-written, say: it could do no more than excuse a key, and MONAI says what is wrong with the one that runs
        if isinstance(written, dict):
            yield written


def check_command(config: dict[str, Any], run_id: str) -> None:
    """
    Raises:
        CallError: if the config has no steps of that name to run.
    """
    if run_id not in config:
        inner = {*_referred(config), *CLIENT_KEYS, "initialize", "finalize", "handlers"}
        commands = [key for key, item in config.items() if isinstance(item, (dict, list)) and key not in inner]
        what = "run: a command of this config belongs behind it" if run_id == "run" else f"run {run_id}: no such command in this config"
        if Path(str(run_id)).exists():
            raise CallError(f"{what}. Did you mean --dataset_dir {run_id}?")
        raise CallError(f"{what}; choose one of {', '.join(commands)}.{did_you_mean(str(run_id), commands)}")


def check_processes(config: dict[str, Any], init_id: str) -> None:
    """
    Raises:
        CallError: under `torchrun` if the processes do not share their work, and for a tracker that is not installed.
    """
    shares_work = any("scripts.common.distributed.start" in text for text in _texts(config.get(init_id)))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not shares_work:
        files = "configs/multi_gpu_train.yaml or configs/multi_gpu_inference.yaml"
        raise CallError(f"under torchrun every process would do everything: add {files} to --config_file")
    if any("MLFlowHandler" in text for text in _texts(config)) and find_spec("mlflow") is None:
        raise CallError("--tracking mlflow needs MLflow: pip install mlflow")


def check_overlay(is_training: bool = False) -> None:
    """First step of train.yaml and of evaluate.yaml.

    Args:
        is_training: it is that of train.yaml.

    Raises:
        CallError: if evaluate.yaml does not stand behind train.yaml, of which it replaces parts.
    """
    workflow = running_workflow()
    if workflow and ("split" in workflow.parser.config if is_training else "train" not in workflow.parser.config):
        files = "\"['configs/train.yaml','configs/evaluate.yaml']\""
        raise CallError(f"evaluate.yaml goes on top of train.yaml: python -m monai.bundle run --config_file {files} --dataset_dir DIR")


def _plain(item: Any) -> str:
    return repr(item).replace("#", "::")  # as MONAI writes ids


def _referred(config: dict[str, Any]) -> set[str]:
    """Top-level keys that items of a config refer to."""
    return {name for text in _texts(config) for name in re.findall(r"@(\w+)", text)}


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
    while causes[-1].__cause__ is not None and type(causes[-1].__cause__).__name__ != "_RemoteTraceback":  # of a process pool: a text
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
