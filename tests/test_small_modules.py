"""Cached scans, inferer, checks before a run, shared config, memory, whole files and the picture of a batch."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import Compose, RandomizableTransform, Transform

from scripts import inferers
from scripts.common import memory
from scripts.common.errors import UserError
from scripts.common.files import write_whole
from scripts.common.preflight import check_weights, is_true
from scripts.common.shared import inference_config
from scripts.data.dataset import CachedScans
from scripts.inferers import AutocastInferer, has_bfloat16
from scripts.tools import show_batch

BUNDLE = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


# dataset


class Load(Transform):
    """Stands for the deterministic transforms; notes what it was asked for."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def __call__(self, data: dict) -> dict:
        if data["image"] == "bad":
            raise UserError("bad: not a scan")
        self.loaded.append(data["image"])
        return {**data, "value": torch.zeros(2)}


class Count(RandomizableTransform):
    """Stands for the random transforms, and writes into what it gets."""

    def __init__(self) -> None:
        super().__init__(prob=1.0)
        self.count = 0

    def __call__(self, data: dict) -> dict:
        self.count += 1
        data["value"] += self.count
        return data


def scans(*names: str) -> list[dict]:
    return [{"image": name, "labelled": [20]} for name in names]


def test_cached_scans_are_loaded_once():
    load, again, augment = Load(), Load(), Count()
    # nested, as train.yaml has it: MONAI alone would take the inner Compose for random and cache nothing
    dataset = CachedScans(scans("a", "b"), Compose([Compose([load, Compose([again])]), augment]), progress=False)
    assert load.loaded == again.loaded == ["a", "b"]
    assert augment.count == 0
    values = [dataset[i]["value"].tolist() for i in (0, 0, 1, 0)]
    assert load.loaded == again.loaded == ["a", "b"]
    assert values == [[1, 1], [2, 2], [3, 3], [4, 4]]  # a new sample each time, and the cached one stays as it is
    assert dataset[1]["image"] == "b"


def test_cached_scans_keep_a_repeated_scan_once():
    load = Load()
    dataset = CachedScans(scans("a", "b", "a", "a", "c"), Compose([Compose([load]), Count()]), progress=False)
    assert len(dataset) == 5
    assert sorted(load.loaded) == ["a", "b", "c"]
    assert [dataset[i]["image"] for i in range(5)] == ["a", "b", "a", "a", "c"]
    assert len(load.loaded) == 3


def test_cached_scans_with_a_share_in_memory():
    load, augment = Load(), Count()
    dataset = CachedScans(scans("a", "b", "a", "c", "d"), Compose([load, augment]), cache_rate=0.5, progress=False)
    assert load.loaded == ["a", "b"]  # two of four
    assert [dataset[i]["image"] for i in range(5)] == ["a", "b", "a", "c", "d"]
    assert load.loaded == ["a", "b", "c", "d"]
    load.loaded.clear()
    dataset = CachedScans(scans("a", "b"), Compose([Compose([load]), augment]), cache_rate=0.0, progress=False)
    assert [dataset[0]["image"], dataset[0]["image"]] == load.loaded == ["a", "a"]


def test_cached_scans_without_random_transforms():
    load = Load()
    dataset = CachedScans(scans("a"), Compose([Compose([load])]), progress=False)
    assert [dataset[0]["value"].tolist() for _ in range(2)] == [[0, 0]] * 2
    assert load.loaded == ["a"]


def test_cached_scans_pass_on_what_is_wrong_with_a_scan():
    with fails("bad: not a scan"):  # and the pool does not wait forever
        CachedScans(scans("a", "bad"), Compose([Compose([Load()]), Count()]), progress=False)


# inferers


def network_and_input() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 3, padding=1).eval(), torch.randn(1, 1, 6, 10, 9)


@pytest.mark.parametrize("inferer", [SimpleInferer(), SlidingWindowInferer((4, 8, 8), 2, 0.25, mode="gaussian")])
def test_without_amp_it_is_the_plain_inferer(inferer):
    network, image = network_and_input()
    with torch.no_grad():
        result = AutocastInferer(inferer, amp=False)(image, network)
        assert result.dtype == torch.float32
        assert torch.equal(result, inferer(image, network))


@pytest.mark.parametrize("hardware", [True, False])
def test_amp_follows_the_hardware_and_returns_float32(monkeypatch, hardware):
    network, image = network_and_input()
    seen = []
    monkeypatch.setattr(inferers, "has_bfloat16", lambda device: hardware)
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.no_grad():
        result = AutocastInferer(SimpleInferer(), amp=True)(image, network)
        assert result.dtype == torch.float32
        assert seen == [torch.bfloat16 if hardware else torch.float32]
        exact = network(image)
    assert torch.equal(result, exact) is not hardware
    torch.testing.assert_close(result, exact, atol=0.05, rtol=0.05)


def test_inferer_passes_arguments_on():
    def network(x, factor, offset=0.0):
        return x * factor + offset

    result = AutocastInferer(SimpleInferer(), amp=False)(torch.ones(1, 1, 2, 2, 2), network, 3.0, offset=0.5)
    assert torch.equal(result, torch.full((1, 1, 2, 2, 2), 3.5))


def test_has_bfloat16(monkeypatch):
    assert isinstance(has_bfloat16(CPU), bool)
    for capabilities, expected in (
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert has_bfloat16(CPU) is expected
    assert has_bfloat16(torch.device("mps")) is False


# preflight and shared


def test_check_weights(tmp_path):
    path = tmp_path / "model.pt"
    for missing in (path, tmp_path):  # nothing there, and a folder
        with fails(f"{missing}: no weights there. Train some with configs/train.yaml, or set --ckpt_path to a model.pt."):
            check_weights(str(missing), "ckpt_path")
    torch.save({"weight": torch.zeros(2)}, path)
    check_weights(str(path), "ckpt_path")


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), ("false", False), ("True", True)])
def test_is_true_reads_yaml_and_the_command_line(value, expected):
    assert is_true(value) is expected


def test_is_true_refuses_anything_else():
    with fails("'no' is neither True nor False"):
        is_true("no")


def test_inference_config_replaces_values():
    parser = inference_config(str(BUNDLE), spacing=[3.0, 1.5, 1.5], label_scheme="spider", keys=["image", "label"])
    assert isinstance(parser, ConfigParser)
    assert parser["spacing"] == [3.0, 1.5, 1.5]
    assert parser["label_scheme"] == "spider"
    assert inference_config(str(BUNDLE))["label_scheme"] == "verse"  # no override leaks
    assert inference_config(str(BUNDLE))["keys"] == ["image"]
    parser = inference_config(str(BUNDLE), keys=["image", "label"], modes=["bilinear", "nearest"], spacing=[3.0, 1.5, 1.5])
    spacing = parser.get_parsed_content("preprocessing").transforms[3]
    assert spacing.keys == ("image", "label")
    assert spacing.spacing_transform.pixdim.tolist() == [3.0, 1.5, 1.5]
    assert parser.get_parsed_content("inferer").inferer.window.roi_size == parser["patch_size"]


def test_inference_config_errors(tmp_path):
    with fails(f"{tmp_path}: no configs/inference.yaml there. Set --bundle_root to the bundle's folder."):
        inference_config(str(tmp_path))
    with fails("inference.yaml has no patchsize, spacings"):
        inference_config(str(BUNDLE), spacings=[1, 1, 1], patchsize=[8, 8, 8], amp=False)


# memory


def test_keep_freed_memory_sets_the_allocator_on_linux_only(monkeypatch):
    calls = []
    library = type("Library", (), {"mallopt": lambda self, name, value: calls.append((name, value)) or 1})()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    memory.keep_freed_memory()
    assert calls == [(-4, 0), (-1, 2**31 - 1), (-2, 2**28)]  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    calls.clear()
    memory.map_large_memory()
    assert calls == [(-4, 2**16), (-3, 2**20), (-1, 2**20), (-2, 2**17)]
    calls.clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # musl: no mallopt
    memory.keep_freed_memory()
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    memory.keep_freed_memory()
    assert calls == []


def test_keep_freed_memory_may_be_called_twice():
    code = "from scripts.common.memory import *; keep_freed_memory(); keep_freed_memory(); map_large_memory(); print(len(bytearray(10**7)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "10000000\n", "")


# files


def test_write_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "a.nii.gz"
    names = []
    assert write_whole(path, lambda partial: names.append(partial.name) or partial.write_text("first")) == path
    assert path.read_text() == "first"
    assert write_whole(str(path), lambda partial: names.append(partial.name) or partial.write_text("second")) == path
    # hidden, with the suffix by which writers choose the format, and another name for every writer
    assert all(re.fullmatch(r"\.partial_[0-9a-f]{8}_a\.nii\.gz", name) for name in names)
    assert len(set(names)) == 2
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_write_whole_leaves_the_old_file_and_no_half_one(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise error("disk full")

    for name in ("a.txt", "b.txt"):
        with pytest.raises(error, match="disk full"):
            write_whole(tmp_path / name, fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


# show_batch


def test_show_batch(monkeypatch, tmp_path, capsys):
    affine = torch.diag(torch.tensor([4.0, 2.0, 1.5, 1.0], dtype=torch.float64))
    calls = []
    monkeypatch.setattr(show_batch, "draw_batch", lambda before, after, path: calls.append((before, after)) or path)

    def load(entry: dict) -> dict:
        value = float(entry["image"][0])
        return {k: MetaTensor(torch.full((1, 2, 3, 4), value), affine=affine) for k in ("image", "label")}

    def augment(sample: dict) -> dict:
        return {"image": sample["image"] + 0.5, "label": sample["label"]}

    data = [{"image": f"{i}_T2w.nii.gz"} for i in (1, 2, 3)]
    assert show_batch.show_batch(data, [load], [augment], 2, tmp_path) == tmp_path / "batch.png"
    assert capsys.readouterr().out == f"{tmp_path / 'batch.png'}\n"
    ((before, after),) = calls
    for rows, added in ((before, 0), (after, 0.5)):
        assert [row[3] for row in rows] == ["1_T2w", "2_T2w"]
        for i, (image, label, spacing_mm, _) in enumerate(rows, start=1):
            np.testing.assert_array_equal(image, np.full((2, 3, 4), i + added))
            np.testing.assert_array_equal(label, np.full((2, 3, 4), i))
            assert label.dtype == np.uint8
            np.testing.assert_allclose(spacing_mm, (4, 2, 1.5))
    assert data == [{"image": f"{i}_T2w.nii.gz"} for i in (1, 2, 3)]
