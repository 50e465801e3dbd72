"""Start of every command: refuse overrides that nothing reads and bad values, and show errors as one line."""

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

# keys that MONAI and its clients read or set, though no item of a config refers to them
CLIENT_KEYS = {"imports", "train", "validate", "_meta_", *DEFAULT_MLFLOW_SETTINGS["configs"]}


def begin(debug: bool | str = False) -> None:
    """Check the call and set up how errors are shown; the first step in `initialize` of every config.

    Args:
        debug: True shows errors of the user with a traceback.

    Raises:
        CallError: for an override that nothing in the config reads (MONAI takes any name), a command that it does not have, a number
            beyond its limits, an option that is not the path, name or switch it should be, or a `bundle_root` that is no bundle.
    """
    show_tracebacks(is_true(debug, "debug"))
    if is_command():
        gc.freeze()  # imported modules stay: to look through them once more would take a second at the end of every command
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # another object may stand in the place of the stream
                stream.reconfigure(errors="backslashreplace")  # a file name that the console cannot encode must not end a batch
        if not is_true(debug, "debug"):
            sys.excepthook = one_line
    if workflow := running_workflow():
        check_overrides(workflow.parser.config, {workflow.init_id, workflow.run_id, workflow.final_id}, workflow.config_root_path)
        check_knobs(workflow.parser.config)
        read_options(workflow.parser)
        if is_command():  # a program may set up a workflow without running it
            check_command(workflow.parser.config, workflow.run_id)
            check_processes(workflow.parser.config, workflow.init_id)
        check_bundle_root(workflow.parser.get_parsed_content("bundle_root"))


def running_workflow() -> ConfigWorkflow | None:
    """Find the workflow whose config is being evaluated on the call stack: an item of a config cannot refer to the whole config."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), ConfigWorkflow):
        frame = frame.f_back
    return frame.f_locals["self"] if frame else None


def check_overrides(config: dict[str, Any], run_ids: set[str], config_dir: Path) -> None:
    """Refuse overrides that nothing reads.

    Args:
        config: config of a workflow, with its overrides.
        run_ids: keys that the workflow runs.
        config_dir: the folder with the config files.

    Raises:
        CallError: for a top-level key that no item refers to, no client reads, and no config file holds with this value.
    """
    names = _referred(config)
    unread = config.keys() - names - CLIENT_KEYS - run_ids
    if unread:  # a key that a config file holds like this is another command, or serves a key that is overridden
        for written in _written(config_dir):
            unread = {key for key in unread if key not in written or _plain(written[key]) != _plain(config[key])}
    for key in sorted(unread):
        raise CallError(f"--{key}: nothing in this config reads it.{did_you_mean(key, names & config.keys(), prefix='--')}")


def _written(config_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of every config file in a folder."""
    for file in sorted(config_dir.glob("*")):
        if file.suffix not in (".json", ".yaml", ".yml") or file.name.startswith("."):
            continue
        try:
            written = ConfigParser.load_config_file(file)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # such a file, half-written say, could only excuse a key; of the config that runs MONAI says what is wrong
        if isinstance(written, dict):
            yield written


def check_command(config: dict[str, Any], run_id: str) -> None:
    """Refuse a command that the config does not have.

    Raises:
        CallError: if the config has no steps of that name to run.
    """
    if run_id not in config:
        inner = {*_referred(config), *CLIENT_KEYS, "initialize", "finalize", "handlers"}
        commands = [key for key, item in config.items() if isinstance(item, (dict, list)) and key not in inner]
        fault = "run: the name of a command is missing behind it" if run_id == "run" else f"run {run_id}: no such command in this config"
        if Path(str(run_id)).exists():
            raise CallError(f"{fault}. Did you mean --dataset_dir {run_id}?")
        raise CallError(f"{fault}; choose one of {', '.join(commands)}.{did_you_mean(str(run_id), commands)}")


def check_processes(config: dict[str, Any], init_id: str) -> None:
    """Refuse `torchrun` with a config whose processes do not share their work, and a tracker that is not installed.

    Raises:
        CallError: for either.
    """
    shares_work = any("scripts.common.distributed.start" in text for text in _texts(config.get(init_id)))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not shares_work:
        files = "configs/multi_gpu_train.yaml or configs/multi_gpu_inference.yaml"
        raise CallError(f"under torchrun every process would do everything: add {files} to --config_file")
    if any("MLFlowHandler" in text for text in _texts(config)) and find_spec("mlflow") is None:
        raise CallError("--tracking mlflow needs MLflow: pip install mlflow")


def check_overlay(is_training: bool = False) -> None:
    """Refuse evaluate.yaml unless it follows train.yaml, of which it replaces parts; the first step of both configs.

    Args:
        is_training: True in train.yaml.

    Raises:
        CallError: if evaluate.yaml is used alone, or before train.yaml.
    """
    workflow = running_workflow()
    if workflow and ("split" in workflow.parser.config if is_training else "train" not in workflow.parser.config):
        files = "\"['configs/train.yaml','configs/evaluate.yaml']\""
        raise CallError(f"evaluate.yaml goes on top of train.yaml: python -m monai.bundle run --config_file {files} --dataset_dir DIR")


def _plain(item: Any) -> str:
    return repr(item).replace("#", "::")  # MONAI replaces # in ids


def _referred(config: dict[str, Any]) -> set[str]:
    """Return the top-level keys that items of a config refer to."""
    return {name for text in _texts(config) for name in re.findall(r"@(\w+)", text)}


def _texts(item: Any) -> Iterator[str]:
    """Yield all strings in a config, at any depth."""
    if isinstance(item, str):
        yield item
    elif isinstance(item, (dict, list)):
        for value in item.values() if isinstance(item, dict) else item:
            yield from _texts(value)


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error as one line, without MONAI's wrapping; the `sys.excepthook` of commands.

    That is for errors before an engine runs, which come from the call. An unforeseen error within a run keeps its traceback.
    """
    if kind is KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return
    causes = [error]
    # the cause of an error in a process pool is a _RemoteTraceback, which is only text
    while causes[-1].__cause__ is not None and type(causes[-1].__cause__).__name__ != "_RemoteTraceback":
        causes.append(causes[-1].__cause__)
    frames = (frame for cause in causes for frame, _ in traceback.walk_tb(cause.__traceback__))
    if any(str(frame.f_globals.get("__name__")).startswith("ignite.engine") for frame in frames):
        sys.__excepthook__(kind, error, trace)
        return
    message = " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__
    print(f"{message}.{_near_argument(causes)} (--debug True shows where)", file=sys.stderr)


def _near_argument(causes: list[BaseException]) -> str:
    """Return a hint with the nearest argument of a class or function that was given an unknown one; empty for other errors."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(causes[-1]))
    wrapped = [re.search(r"Failed to instantiate component '([\w.]+)'", str(cause)) for cause in causes]
    if not unknown or not any(wrapped):
        return ""
    component = pydoc.locate([match[1] for match in wrapped if match][-1])
    return did_you_mean(unknown[1], inspect.signature(component).parameters)
