"""Installation check: parsing of requirements, verdicts, and that a failure hides no other check."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import pytest
import torch

from scripts.common.errors import UserError
from scripts.labels import OWN_TABLE, label_table
from scripts.tools import check_setup as module
from scripts.tools.check_setup import check_network, check_requirements, check_setup

CLASSES = len(label_table())


@pytest.fixture
def requirements(tmp_path):
    def write(text: str):
        path = tmp_path / "requirements.txt"
        path.write_text(text)
        return path

    return write


class Network(torch.nn.Module):
    def __init__(self, classes: int = CLASSES, scale: float = 1.0, several: bool = False):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, classes, 1)
        self.scale, self.several = scale, several

    def forward(self, x):
        y = self.conv(x) * self.scale
        return [y, y[..., ::2]] if self.several else y


def test_requirements(requirements):
    numpy = version("numpy")
    path = requirements(
        f"# pins\nnumpy=={numpy}  # exact\n\n--index-url https://example.org\ntorch>=2.0,<99\nnumpy>=99\n"
        "no-such-package-here==1.0\npytest\nnumpy==0.1; python_version < '3.0'\n"
    )
    found = [(c.ok, c.name, c.found, c.expected) for c in check_requirements(path)]
    assert found == [
        (True, "numpy", numpy, f"=={numpy}"),
        (True, "torch", version("torch"), "<99,>=2.0"),
        (False, "numpy", numpy, ">=99"),
        (False, "no-such-package-here", "not installed", "==1.0"),
        (True, "pytest", version("pytest"), "any"),
    ]


def test_a_local_build_satisfies_a_pin(requirements, monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: "2.13.0+cpu")
    assert check_requirements(requirements("torch==2.13.0"))[0].ok
    assert not check_requirements(requirements("torch==2.13.1"))[0].ok


def test_requirements_that_cannot_be_read(requirements, tmp_path):
    with pytest.raises(UserError, match=r"requirements.txt: cannot read the line 'numpy=2'"):
        check_requirements(requirements("numpy=2\n"))
    with pytest.raises(UserError, match=r"absent.txt: no such file"):
        check_requirements(tmp_path / "absent.txt")


def test_network():
    cpu = torch.device("cpu")
    good = check_network(Network(), cpu)
    assert good == (True, "network", f"(1, {CLASSES}, 32, 32, 32), finite", f"(1, {CLASSES}, 32, 32, 32), finite")
    assert check_network(Network(several=True), cpu).ok
    assert check_network(Network(classes=3), cpu)[:3] == (False, "network", "(1, 3, 32, 32, 32), finite")
    assert check_network(Network(scale=float("inf")), cpu)[2].endswith("not finite")
    network = Network().train()
    check_network(network, cpu)
    assert network.training


def test_all_lines_are_printed_and_pass(requirements, capsys, monkeypatch):
    monkeypatch.setattr(module, "available_memory_gib", lambda: 8.0)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 5 * 2**30}))
    check_setup(str(requirements(f"numpy=={version('numpy')}")), Network(), "cpu")
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "all 7 checks passed"
    assert lines[0].split() == ["check", "found", "expected"]
    assert [line.split()[0] for line in lines[1:]] == ["ok"] * 7
    assert [line[6:].split("  ")[0].strip() for line in lines[1:]] == [
        "python",
        "numpy",
        "device",
        "memory",
        "disk",
        "label table",
        "network",
    ]
    assert "8.0 GiB free" in lines[4]
    assert ">=4 GiB" in lines[4]
    assert torch.backends.cpu.get_cpu_capability() in lines[3]
    assert f"{CLASSES} channels" in lines[6]


def test_failures_are_named_at_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "available_memory_gib", lambda: 1.5)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2**30}))
    with pytest.raises(UserError, match=r"^5 of 7 checks failed: requirements, device, memory, disk, network$"):
        check_setup(tmp_path / "absent.txt", torch.nn.Linear(3, 3), "nonsense")
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 8
    assert "FAIL  memory        1.5 GiB free" in out
    assert "ok    label table" in out


def test_the_label_table(monkeypatch, tmp_path):
    rows = [{"channel": 0, "name": "background", "verse": 0}, {"channel": 1, "name": "L1", "verse": 20}]
    for name, table in (("good", rows), ("bad", [rows[0], {**rows[0], "channel": 1}])):
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    monkeypatch.setenv(OWN_TABLE, str(tmp_path / "good.json"))
    assert module.check_label_table() == (True, "label table", "2 channels", "unique names and numbers")
    monkeypatch.setenv(OWN_TABLE, str(tmp_path / "bad.json"))
    (check,) = module.guarded("label table", lambda: [module.check_label_table()])
    assert not check.ok
    assert check.found.endswith("bad.json: two structures share a name, ['background']")


def test_unknown_memory_is_no_failure(monkeypatch):
    monkeypatch.setattr(module, "available_memory_gib", lambda: None)
    assert module.check_memory() == (True, "memory", "unknown", ">=4 GiB")


def test_old_python_fails(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 0))
    assert not module.check_python().ok


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_missing_gpu():
    check = module.check_device(torch.device("cuda:0"))
    assert (check.ok, check.found) == (False, f"cuda:0: torch {torch.__version__} sees no GPU")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_available_memory():
    assert 0 < module.available_memory_gib() < 2**20


def test_weights(requirements, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "available_memory_gib", lambda: 8.0)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 5 * 2**30}))
    path = tmp_path / "model.pt"
    for content, word in (
        (None, "no weights there"),
        (b"garbage", str(path)),
        ({"conv.weight": torch.zeros(3)}, "weights of another network"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            torch.save(content, path)
        with pytest.raises(UserError, match=r"weights$"):
            check_setup(str(requirements("")), Network(), "cpu", weights=str(path))
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("FAIL  weights")
        assert word[:40] in line
    torch.save(Network().state_dict(), path)
    check_setup(str(requirements("")), Network(), "cpu", weights=str(path))
    *_, line, last = capsys.readouterr().out.splitlines()
    assert line.split("  ")[0] == "ok"
    assert f"0.0 million in {path}" in line
    assert last.startswith("all ")
