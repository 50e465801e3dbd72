"""Check the installation before hours are spent on it: Python, packages, device, memory, disk, network, label table."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import InvalidRequirement, Requirement

from scripts.common.errors import UserError
from scripts.common.preflight import check_weights
from scripts.common.tables import aligned
from scripts.inferers import has_bfloat16
from scripts.labels import label_table

MIN_PYTHON = (3, 10)
MIN_MEMORY_GIB = 4.0  # for inference of a large scan, with the scores of all classes
MIN_DISK_GIB = 2.0  # for checkpoints and results of one training
PROBE_SHAPE = (1, 1, 32, 32, 32)  # of a tiny image; the fine network halves a patch four times
GIB = 2**30


class Check(NamedTuple):
    """Outcome of one check, with words for the table."""

    ok: bool
    name: str
    found: str
    expected: str


def check_setup(
    requirements_file: str | Path, network_def: torch.nn.Module | None = None, device: str | torch.device = "cpu", weights: str = ""
) -> None:
    """Print a line per check; every check runs, whatever the others say.

    Args:
        requirements_file: file of lines such as `name==1.2` or `name>=1,<2`.
        network_def: network that is tried on a tiny volume; None skips that check.
        device: device that will be used, e.g. "cuda:0".
        weights: file that the network will load; empty skips that check.

    Raises:
        UserError: at the end, naming the checks that failed.
    """
    checks = [
        check_python(),
        *guarded("requirements", lambda: check_requirements(requirements_file)),
        *guarded("device", lambda: [check_device(torch.device(device))]),
        check_memory(),
        check_disk(Path.cwd()),
        *guarded("label table", lambda: [check_label_table()]),
    ]
    if network_def is not None:
        checks += guarded("network", lambda: [check_network(network_def, torch.device(device))])
    if network_def is not None and weights:
        checks += guarded("weights", lambda: [check_file_of_weights(weights, network_def)])
    rows = [("    ", "check", "found", "expected"), *(("ok" if c.ok else "FAIL", c.name, c.found, c.expected) for c in checks)]
    print(aligned(rows, left=range(len(rows[0]))))
    failed = [c.name for c in checks if not c.ok]
    if failed:
        raise UserError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
    print(f"all {len(checks)} checks passed")


def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """Run checks; an error becomes a failed check with its first line, because a broken driver must not hide the other lines."""
    try:
        return check()
    except (Exception, SystemExit) as error:
        return [Check(False, name, (str(error).splitlines() or [type(error).__name__])[0][:150], "no error")]


def check_python() -> Check:
    return Check(sys.version_info >= MIN_PYTHON, "python", sys.version.split()[0], ">=" + ".".join(map(str, MIN_PYTHON)))


def check_requirements(requirements_file: str | Path) -> list[Check]:
    """Check every package of a requirements file. Comments, options (`--index-url`) and lines for other systems are skipped.

    Raises:
        UserError: if the file is missing or a line cannot be parsed.
    """
    path = Path(requirements_file)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Start from the folder of the bundle.")
    checks = []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise UserError(f"{path}: cannot read the line '{line}' ({str(error).splitlines()[0]})") from None
        if requirement.marker and not requirement.marker.evaluate():
            continue
        expected = str(requirement.specifier) or "any"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            checks.append(Check(False, requirement.name, "not installed", expected))
            continue
        checks.append(Check(requirement.specifier.contains(found, prereleases=True), requirement.name, found, expected))
    return checks


def check_device(device: torch.device) -> Check:
    """Run a small sum on the device; report the name and memory of a GPU, or cores and vector units of the CPU."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return Check(False, "device", f"{device}: torch {torch.__version__} sees no GPU", "a CUDA GPU, or device cpu")
    if float(torch.ones(8, device=device).sum()) != 8:
        return Check(False, "device", f"{device}: 8 ones do not add up to 8", "a sum of 8")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Check(True, "device", f"{device}: {properties.name}, {properties.total_memory / GIB:.0f} GiB", str(device))
    if device.type != "cpu":
        return Check(True, "device", str(device), str(device))
    precision = "bfloat16" if has_bfloat16(device) else "float32"
    found = f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {precision}"
    return Check(True, "device", found, str(device))


def available_memory_gib() -> float | None:
    """Return the memory that can be used without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))  # given in KiB
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    except (AttributeError, ValueError, OSError):  # Windows; macOS does not know the first name
        return None


def check_memory() -> Check:
    free, expected = available_memory_gib(), f">={MIN_MEMORY_GIB:g} GiB"
    if free is None:
        return Check(True, "memory", "unknown", expected)
    return Check(free >= MIN_MEMORY_GIB, "memory", f"{free:.1f} GiB free", expected)


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / GIB
    return Check(free >= MIN_DISK_GIB, "disk", f"{free:.1f} GiB free in {folder}", f">={MIN_DISK_GIB:g} GiB")


def check_label_table() -> Check:
    """Check the label table, and report how many channels it has.

    Raises:
        UserError: if it contradicts itself.
    """
    return Check(True, "label table", f"{len(label_table())} channels", "unique names and numbers")


def check_file_of_weights(path: str, network: torch.nn.Module) -> Check:
    """Check that a file of weights fits the network, and report its size.

    Raises:
        UserError: if the file is missing, damaged, or holds the weights of another network.
    """
    count = sum(tensor.numel() for tensor in check_weights(path, "ckpt_path", network).values())
    return Check(True, "weights", f"{count / 1e6:.1f} million in {path}", "those of the network")


def check_network(network: torch.nn.Module, device: torch.device) -> Check:
    """Check that a tiny volume gives one finite score per structure and voxel; the network's mode and device are kept."""
    training = network.training
    home = next((p.device for p in network.parameters()), device)
    try:
        network.to(device).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            scores = network(torch.rand(PROBE_SHAPE, generator=generator).to(device))
    finally:
        network.to(home).train(training)
    scores = scores[0] if isinstance(scores, (list, tuple)) else scores  # deep supervision: the full resolution comes first
    expected = (1, len(label_table()), *PROBE_SHAPE[2:])
    finite = bool(torch.isfinite(scores).all())
    found = f"{tuple(scores.shape)}, {'finite' if finite else 'not finite'}"
    return Check(finite and tuple(scores.shape) == expected, "network", found, f"{expected}, finite")
