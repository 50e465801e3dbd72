"""Options as they were typed: paths, names and switches that `fire` turned into other values are restored before anything reads them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from monai.bundle import ConfigParser

from scripts.common.errors import CallError
from scripts.common.knobs import is_expression, is_number
from scripts.common.preflight import is_true

# options that are paths or names and cannot be None, and all that are paths or names
NEEDED = {"bundle_root", "dataset_dir", "output_dir", "ckpt_path", "sacrum_dir", "release_dir", "results", "nnunet_python"}
TEXTS = NEEDED | {
    "datalist", "image", "split", "labels", "pretrained", "resume", "prediction", "reference", "before", "after", "metrics", "name",
    "patient_pattern", "pattern", "label_scheme", "read_scheme", "train_only", "lowest", "names",
}  # fmt: skip
LISTS = {"also_train_on", "scans", "parts"}  # options that are lists of paths or names
SWITCHES = {"allow_outside", "amp", "train_amp", "tta", "figures", "overwrite", "debug"}  # True or False


def is_command() -> bool:
    """Return True if `python -m monai.bundle` runs the config, and not a program that uses hooks and signals in its own way."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def read_options(parser: ConfigParser) -> None:
    """Convert options to the type they should have, before anything reads them: paths and names to text, lists of them to lists of text,
    switches to True or False.

    Raises:
        CallError: for one that has no value, or that MONAI has changed, and for a switch that is neither True nor False.
    """
    found = [(name, parser.config, name) for name in sorted((TEXTS | LISTS) & parser.config.keys())]
    for name, holder, place in [*found, *_switches(parser.config)]:
        value = holder[name]
        read = list_of_texts if name in LISTS else as_switch if name in SWITCHES else as_text
        option = read(name, value)
        if option != value or type(option) is not type(value):
            holder[name] = option
            parser.ref_resolver.get_item(place).update_config(option)
            parser.ref_resolver.remove_resolved_content(place)


def _switches(config: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    """Find every switch at any depth, such as `--inferer::inferer::tta`, with its name, the mapping that holds it and its id."""
    for key, item in config.items() if isinstance(config, dict) else enumerate(config):
        if isinstance(config, dict) and key in SWITCHES and not isinstance(item, (dict, list)):
            yield key, config, f"{place}{key}"
        elif isinstance(item, (dict, list)):
            yield from _switches(item, f"{place}{key}::")


def as_switch(name: str, value: Any) -> Any:
    """Convert a switch from YAML or the command line, where `--figures false` is a text, to a boolean; expressions stay as they are."""
    return value if is_expression(value) else is_true(value, name)


def as_text(name: str, value: Any) -> Any:
    """Convert an option that is a path or a name back to text. `fire` reads it as Python: 20240501 as a number, `a,b` as a list.

    Args:
        name: the option.
        value: its value in the config.

    Returns:
        the text on the command line, or a number as text; any other value of a program or a config as it is.

    Raises:
        CallError: for an option without a value, or with a `#`.
    """
    typed = typed_value(name) if is_command() else None
    if (isinstance(value, bool) and name != "resume") or (value is None and name in NEEDED):
        raise CallError(f"--{name}: its value is missing" if value is True else f"--{name} {value}: a path or a name is needed")
    if typed is not None and (is_number(value) or isinstance(value, (list, tuple, dict, set))):
        value = typed  # `fire` has read it as Python
    elif is_number(value):
        value = str(value)
    if isinstance(value, str) and "::" not in (typed or ""):
        _check_hash(name, value)
    return value


def list_of_texts(name: str, value: Any) -> Any:
    """Convert an option that is a list of paths or names to a list of texts; one alone becomes a list of one."""
    if isinstance(value, (list, tuple)):
        texts = [str(item) if isinstance(item, (int, float)) else item for item in value]
        for text in texts:
            _check_hash(name, str(text))
        return texts
    text = as_text(name, value)
    return text if is_expression(text) else [text] if text else []


def _check_hash(name: str, value: str) -> None:
    if not is_expression(value) and ("#" in value or "::" in value):
        written = value.replace("::", "#")
        raise CallError(f"--{name} {written}: MONAI reads # in an option as ::. Rename what is called so, or give a link to it without #.")


def typed_value(name: str) -> str | None:
    """Return the text behind `--name` on the command line, as `fire` finds it; None if there is none."""
    found = None
    for argument, following in zip(sys.argv, [*sys.argv[1:], "--"]):
        key, equals, value = argument.partition("=")
        if key.startswith("-") and key.lstrip("-").replace("-", "_") == name:
            found = value if equals else None if re.match(r"--|-[a-zA-Z]$", following) else following
    return found
