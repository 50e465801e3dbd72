"""Checks before a run: a call that would fail deep in it ends with one line instead."""

from __future__ import annotations

import inspect
import pydoc
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.errors import CallError, did_you_mean, read_reason, similar_path

if TYPE_CHECKING:
    import torch  # takes a second to import


def check_weights(path: str, option: str, network: torch.nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Read the weights in a file, and check that they fit a network.

    Args:
        path: file with a state_dict.
        option: name of the setting that holds the path.
        network: network that will load the weights; None checks the file alone.

    Raises:
        CallError: if there is no file at `path`, its weights are those of another network, or `load_weights` refuses it.
    """
    if not Path(path).is_file():
        hint = f"Train some with configs/train.yaml, or set --{option} to a model.pt."
        raise CallError(f"{path}: no weights there. {hint}{similar_path(path)}")
    state = load_weights(path)
    state = state.get("model", state)  # a last.pt holds more than the weights
    if network is not None:
        check_fit(path, state, network, f"Give the --network_def and --labels that they were trained with, or another --{option}.")
    return state


def check_fit(path: str | Path, state: Mapping[str, Any], network: torch.nn.Module, fix: str) -> None:
    """Refuse weights that do not fit a network.

    Args:
        path: file of the weights, for the message.
        state: the weights.
        network: network that will load them.
        fix: what to do, one sentence.

    Raises:
        CallError: if a layer has another name or another size.
    """
    from scripts.network import unwrapped  # here, because it imports torch

    own = unwrapped(network).state_dict()
    wrong = [name for name in own.keys() | state.keys() if getattr(state.get(name), "shape", None) != getattr(own.get(name), "shape", None)]
    if wrong:
        first = min(wrong)
        there, here = (str(tuple(s[first].shape)) if first in s else "missing" for s in (state, own))
        raise CallError(
            f"{path}: weights of another network: {len(wrong)} of {len(own)} layers differ, {first} is {there} there and {here} here. {fix}"
        )


def check_files(**files: Any) -> None:
    """Refuse options whose files do not exist.

    Args:
        files: the path of each option by name; an empty path means that the option was not given.

    Raises:
        CallError: naming the first of them.
    """
    for option, path in files.items():
        if path and not Path(path).exists():
            raise CallError(f"{path}: no such file. Set --{option} to one that exists.{similar_path(path)}")


def check_start(train_only: str, pretrained: str, resume: str) -> None:
    """Refuse to train one of the two networks while the other has random weights.

    Raises:
        CallError: if only a part is to be trained, but no trained network is given.
    """
    if train_only != "both" and not (pretrained or resume):
        raise CallError(f"--train_only {train_only} keeps the rest of a trained network: set --pretrained, to models/model.pt for example")


def load_weights(path: str | Path) -> dict[str, Any]:
    """Load a file of `torch.save` to the CPU; tensors and plain values only, so that no code in the file is ever run.

    Raises:
        CallError: if the file is damaged, or holds anything else.
    """
    import torch  # here, because it takes seconds to import and most of this module does without

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of other formats raise errors of many kinds in the unpickler
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise CallError(
                f"{path}: refused, it holds {code[1]} beside weights, which could run code. Take a plain state_dict."
            ) from error
        # for other formats the messages tell nothing, or are a page on options of PyTorch
        is_other_format = not isinstance(error, (RuntimeError, EOFError, OSError))
        reason = "torch.save did not write it" if is_other_format else read_reason(error)
        raise CallError(f"{path}: cannot be read as weights ({reason}). Copy or train it again.") from error
    if not isinstance(state, dict):
        raise CallError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return state


def check_arguments(option: str, given: Any, function: str, without: Collection[str] = ()) -> None:
    """Refuse a setting that does not hold arguments of a function.

    Args:
        option: name of the setting.
        given: its value, arguments by name.
        function: dotted path of the function.
        without: arguments of the function that the setting may not hold.

    Raises:
        CallError: for a value that is no mapping, or holds an argument that the function does not have.
    """
    known = [name for name in inspect.signature(pydoc.locate(function)).parameters if name not in without]
    if not isinstance(given, Mapping):
        raise CallError(
            f"--{option} {given}: options by name are needed, such as \"{{'{known[0]}': ...}}\"; the options are {', '.join(known)}"
        )
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise CallError(f"--{option}: there is no option '{name}'; choose from {', '.join(known)}.{hint}")


def check_device(device: Any) -> None:
    """Refuse a device on which an empty tensor cannot be made.

    Args:
        device: a `torch.device`, or its name.

    Raises:
        CallError: if PyTorch does not know or does not have it.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = "not a device of PyTorch, such as cuda" if "Expected one of" in str(error) else read_reason(error).rstrip(".")
        raise CallError(f"--device {device}: not there ({reason}). Leave it out, or set it to cpu.") from error


def check_input(image: str, datalist: str, split: str, pattern: str) -> None:
    """Refuse a call that gives one scan and also options for several scans.

    Raises:
        CallError: naming those options.
    """
    others = " and ".join(f"--{name}" for name, value in (("datalist", datalist), ("split", split), ("pattern", pattern)) if value)
    if image and others:
        raise CallError(f"--image takes one scan, {others} several of them: leave out one or the other")


def check_bundle_root(bundle_root: str) -> None:
    """Refuse a folder that holds no bundle.

    Raises:
        CallError: if it has no `configs/metadata.json`.
    """
    if not (Path(bundle_root) / "configs" / "metadata.json").is_file():
        raise CallError(f"--bundle_root {bundle_root}: no bundle there, it has no configs/metadata.json. Set it to the bundle's folder.")


def check_writable(folder: str, option: str) -> None:
    """Make a folder if it is missing, and check that it can be written to, with a file that is removed at once.

    Raises:
        CallError: if either fails.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(b"0" * 4096)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CallError(f"{folder}: cannot be written to ({reason}). Set --{option} to a folder that can, on a disk with room.") from None


def is_true(value: bool | str, option: str) -> bool:
    """Convert the value of a switch from YAML or the command line, where `--figures false` is a string, to a boolean.

    Raises:
        CallError: if it is neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise CallError(f"--{option} is '{value}', neither True nor False")
    return text == "true"
