"""The command `benchmark`: measure how long inference and training take, part by part and compared with other ways on the same scans.

Every measurement runs in a process of its own, one after the other.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import monai
import torch

from scripts.benchmark.page import write_page
from scripts.benchmark.parts import PARTS, Bench, grid_of, phantoms
from scripts.common.cores import cores
from scripts.common.errors import CallError, UserError, did_you_mean, similar_path
from scripts.common.files import write_whole
from scripts.data.find import case_name
from scripts.labels import METADATA_FILE
from scripts.tools.check_setup import check_device


def benchmark(
    bundle_root: str,
    results_file: str,
    parts: Sequence[str],
    scans: Sequence[str] = (),
    repeats: int = 3,
    folder_size: int = 20,
    many_scans: int = 1000,
    training_steps: int = 20,
    nnunet_python: str = "",
) -> None:
    """Measure `parts`, add them to `results_file`, and write the page `.md` and the plot `.png` beside it.

    Parts that the file already holds are kept if they were measured on the same machine and scans with the same versions.

    Args:
        bundle_root: folder of the bundle.
        results_file: JSON.
        parts: names in `PARTS`; empty: only write the page again.
        scans: files; empty: two phantoms, see `SCANS`.
        repeats: runs per scan, of which the median counts.
        folder_size: scans in the folder of the part `folder`, at least two for every core.
        many_scans: scans in the folder of the part `many`, at least 20.
        training_steps: steps of a training that are measured.
        nnunet_python: interpreter of an environment with nnunetv2; without one the part `nnunet` says that it is missing.

    Raises:
        CallError: for an unknown part, a scan that does not exist, or a folder that is too small.
        UserError: for a measurement that fails.
    """
    for part in parts:
        if part not in PARTS:
            raise CallError(f"benchmark has no part {part}; choose from {', '.join(PARTS)}.{did_you_mean(str(part), PARTS)}")
    for scan in scans:
        if not Path(scan).exists():
            raise CallError(f"{scan}: no such file. --scans takes a list of scans, or nothing for phantoms.{similar_path(scan)}")
    if folder_size < 2 * cores():
        raise CallError(f"--folder_size {folder_size}: two scans for each of the {cores()} processes are needed")
    path = Path(results_file)
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    setting = {"machine": machine(), "repeats": repeats}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = {case_name(s): Path(s).absolute() for s in scans} if scans or not parts else phantoms(work / "scans")
        python = str(Path(nnunet_python).absolute())  # not resolved: an environment is known by the link to its python
        bench = Bench(str(Path(bundle_root).absolute()), work, files, repeats, folder_size, many_scans, training_steps, python)
        if parts:
            setting["scans"] = {name: grid_of(scan) for name, scan in files.items()}
        results = old if {k: old.get(k) for k in setting} == setting or not parts else setting
        for part in [p for p in PARTS if p in parts]:
            print(f"benchmark: {part}", flush=True)
            results[part] = PARTS[part](bench)
            write_whole(path, lambda partial: partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8"))
    if not results.get("scans"):
        raise UserError(f"{results_file}: nothing measured yet. Choose --parts from {', '.join(PARTS)}.")
    print(write_page(results, path))


def machine() -> dict[str, str]:
    """Return processor, device and versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor without a name
        cpu = platform.processor() or platform.machine()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "processor": cpu,
        "cores": str(cores()),
        "device": check_device(device).found,
        "bundle": json.loads(METADATA_FILE.read_text(encoding="utf-8"))["version"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
    }
