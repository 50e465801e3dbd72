"""Access to inference.yaml for train.yaml: only inference.yaml defines preprocessing, inferer and post-processing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, load_bundle_config

from scripts.common.errors import CallError


def inference_config(bundle_root: str, **overrides: Any) -> ConfigParser:
    """Parse `configs/inference.yaml` with some of its top-level values replaced.

    Raises:
        CallError: if `bundle_root` is not this bundle, or an override names a key that inference.yaml does not have.
    """
    if not (Path(bundle_root) / "configs" / "inference.yaml").is_file():
        raise CallError(f"{bundle_root}: no configs/inference.yaml there. Set --bundle_root to the bundle's folder.")
    parser = load_bundle_config(bundle_root, "inference.yaml")
    unknown = set(overrides) - set(parser.config)
    if unknown:
        raise CallError(f"inference.yaml has no {', '.join(sorted(unknown))}")
    parser.update(overrides)
    return parser
