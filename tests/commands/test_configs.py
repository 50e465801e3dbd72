"""The bundle contract: properties, overlays, metadata, export, and no key without a use."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUNDLE, EVALUATE, INFERENCE, SMALL, TOOLS, TRAIN, run_bundle
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, load, verify_metadata, verify_net_in_out
from monai.bundle.utils import load_bundle_config

from scripts.common.errors import UserError
from scripts.labels import label_table

CONFIGS = BUNDLE / "configs"
MULTI_GPU, MULTI_GPU_INFERENCE = (str(CONFIGS / f"multi_gpu_{name}.yaml") for name in ("train", "inference"))
SCHEMA = BUNDLE.parent / "shared" / "tools" / "meta_schema_20240725.json"


def test_properties_in_a_fresh_process(cohort, tmp_path):
    """Neither the current folder nor PYTHONPATH leads to the bundle's scripts."""
    options = {**SMALL, "dataset_dir": str(cohort), "output_dir": str(tmp_path)}
    code = f"""
from monai.bundle import ConfigWorkflow
for files, kind in (([{TRAIN!r}], "train"), ([{TRAIN!r}, {EVALUATE!r}], "train"), ([{INFERENCE!r}], "infer")):
    workflow = ConfigWorkflow(files, workflow_type=kind, **{options!r})
    workflow.initialize()
    assert not workflow.check_properties()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("files", "kind"), [([TRAIN], "train"), ([TRAIN, EVALUATE], "train"), ([INFERENCE], "infer")], ids=["train", "evaluate", "inference"]
)
def test_properties_from_a_foreign_folder(files, kind, cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workflow = ConfigWorkflow(files, workflow_type=kind, **SMALL, dataset_dir=str(cohort), output_dir=str(tmp_path))
    workflow.initialize()
    assert not workflow.check_properties()


def test_multi_gpu_overlay_parses_from_a_foreign_folder(cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workflow = ConfigWorkflow([TRAIN, MULTI_GPU], workflow_type="train", **SMALL, dataset_dir=str(cohort), output_dir=str(tmp_path))
    assert workflow.parser.get_parsed_content("device") == torch.device("cpu")
    assert workflow.parser["validate::sampler"]["never_empty"] is True


@pytest.mark.parametrize(("local", "device"), [("1", "cuda:1"), ("2", "cuda:0")])
def test_processes_share_the_gpus_of_inference(monkeypatch, local, device):
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    parser = load_bundle_config(str(BUNDLE), "inference.yaml", "multi_gpu_inference.yaml")
    assert parser.get_parsed_content("device") == torch.device(device)


def test_network_is_one_and_the_same():
    train, inference = (ConfigParser.load_config_file(f)["network_def"] for f in (TRAIN, INFERENCE))
    assert train == inference


def test_fine_network_has_the_weights_of_the_original():
    network = load_bundle_config(str(BUNDLE), "inference.yaml").get_parsed_content("network_def")
    assert sum(p.numel() for p in network.fine.parameters()) == pytest.approx(4.8e6, rel=0.02)
    assert network.coarse[-1].out_channels == len(label_table())


def test_another_network_is_one_override_away():
    override = re.search(r'--network_def::fine "(\{.*?\})"', (BUNDLE / "docs" / "training.md").read_text())[1]
    for name in ("train.yaml", "inference.yaml"):
        parser = load_bundle_config(str(BUNDLE), name)
        parser.update({"network_def::fine": ast.literal_eval(override), "bundle_root": str(BUNDLE)})
        network = parser.get_parsed_content("network_def")
        assert type(network.fine).__name__ == "SegResNet"
        with torch.no_grad():
            assert network(torch.zeros(1, 1, *parser.get_parsed_content("patch_size"))).shape == (1, len(label_table()), 48, 80, 128)


# ids that MONAI or its clients read, and ids that are commands of their own
INTERFACE = {"imports", "handlers", "initialize", "run", "finalize", "evaluator", "train", "validate", "show_batch"}
COMMANDS = {
    "check", "phantoms", "prepare", "explore", "label_sacrum", "summary", "visualize", "rename", "viewer_labels", "measure", "compare",
    "record", "package", "benchmark",
}  # fmt: skip


@pytest.mark.parametrize(
    "files",
    [[INFERENCE], [INFERENCE, MULTI_GPU_INFERENCE], [TRAIN], [TRAIN, EVALUATE], [TRAIN, MULTI_GPU], [TOOLS]],
    ids=["inference", "multi_gpu_inference", "train", "evaluate", "multi_gpu_train", "tools"],
)
def test_no_key_is_dead(files):
    text = "\n".join(Path(f).read_text() for f in files)
    keys = {k.lstrip("+").split("::")[0] for f in files for k in ConfigParser.load_config_file(f)}
    dead = {k for k in keys - INTERFACE - COMMANDS if not re.search(rf"@{k}\b", text)}
    assert not dead


@pytest.mark.parametrize("name", ["inference", "train", "evaluate", "tools"])
def test_every_knob_has_a_comment(name):
    """A knob is a top-level key with a plain value."""
    config = ConfigParser.load_config_file(CONFIGS / f"{name}.yaml")
    lines = {line.split(":")[0]: line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines()}
    plain = {k: v for k, v in config.items() if "::" not in k and k not in INTERFACE and not isinstance(v, dict)}
    knobs = [k for k, v in plain.items() if not str(v).startswith("$")]
    assert len(knobs) > 2
    assert not [lines[k] for k in knobs if "  # " not in lines[k] and k != "bundle_root"]


def test_every_knob_that_changes_masks_makes_a_scan_undone():
    config = ConfigParser.load_config_file(INFERENCE)
    knobs = {k for k, v in config.items() if k not in INTERFACE and not isinstance(v, dict)} - {"network"}
    scans = {"dataset_dir", "datalist", "split", "pattern", "allow_outside", "image"}
    where = scans | {"bundle_root", "output_dir", "figures", "overwrite", "debug"}
    machine = {"device", "num_workers", "sw_batch_size"}
    looked_at_otherwise = {"ckpt_path", "labels", "keys", "write_masks"}  # the files' contents, and what train.yaml alone changes
    assert knobs - where - machine - looked_at_otherwise <= set(config["done"]["settings"])


@pytest.mark.skipif(not SCHEMA.exists(), reason="needs ../shared/tools/meta_schema_20240725.json: MONAI would download it")
def test_metadata_fits_the_schema(tmp_path):
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))


def test_version_is_in_the_changelog():
    metadata = ConfigParser.load_config_file(CONFIGS / "metadata.json")
    assert metadata["version"] in metadata["changelog"]


def test_metadata_pins_are_those_of_the_requirements():
    metadata = ConfigParser.load_config_file(CONFIGS / "metadata.json")
    pins = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"], "numpy": metadata["numpy_version"]}
    lines = (BUNDLE / "requirements.txt").read_text().splitlines()
    for name, version in {**pins, **metadata["required_packages_version"]}.items():
        assert any(re.match(rf"{re.escape(name)}=={re.escape(version)}(\s|;|$)", line) for line in lines), name


def test_network_fits_the_metadata():
    verify_net_in_out(net_id="network_def", meta_file=str(CONFIGS / "metadata.json"), config_file=INFERENCE)


def test_torchscript_export_gives_the_same_logits(tmp_path):
    network = load_bundle_config(str(BUNDLE), "inference.yaml").get_parsed_content("network_def").eval()
    weights = tmp_path / "model.pt"
    torch.save(network.state_dict(), weights)
    export = {"filepath": str(tmp_path / "model.ts"), "ckpt_file": str(weights), "meta_file": str(CONFIGS / "metadata.json")}
    ckpt_export(net_id="network_def", config_file=INFERENCE, **export)
    image = torch.rand(1, 1, 16, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(export["filepath"])(image), network(image))


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")
def test_shipped_weights_load(tmp_path):
    network = load_bundle_config(str(BUNDLE), "inference.yaml").get_parsed_content("network_def")
    linked = tmp_path / "spine_mri_segmentation"
    linked.symlink_to(BUNDLE)
    loaded = load("spine_mri_segmentation", model=network, bundle_dir=str(tmp_path), source="monaihosting")
    state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(v, state[k].float()) for k, v in loaded.state_dict().items())  # the file is float16
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 25e6


def test_two_processes_train_and_resume(cohort, tmp_path):
    options = [f"--{k}={v}" for k, v in {**SMALL, "dataset_dir": cohort, "output_dir": tmp_path, "epochs": 1, "val_interval": 1}.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29577", "-m", "monai.bundle", "run"]
    command += ["--config_file", f"['{TRAIN}','{MULTI_GPU}']"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the bundle is found from a foreign folder without PYTHONPATH
    for extra in ([], [f"--resume={tmp_path}", "--epochs=2"]):
        done = subprocess.run(
            [*command, *options, *extra], capture_output=True, encoding="utf-8", env=environment, cwd=tmp_path, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["trainer"]["iteration"] == 2
    assert not any(k.startswith("module.") for k in last["model"])
    assert not any(k.startswith("module.") for k in torch.load(tmp_path / "model.pt", weights_only=True))


def test_wrong_bundle_root_is_one_line(cohort, tmp_path):
    with pytest.raises(UserError, match=r"no configs/inference.yaml there. Set --bundle_root to the bundle's folder."):
        run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(tmp_path), bundle_root=str(tmp_path))
