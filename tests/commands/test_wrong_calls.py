"""Wrong calls: one clear line with the nearest valid name, exit code 2, and nothing run or written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import BUNDLE, INFERENCE, TOOLS, TRAIN, run_bundle
from monai.bundle import ConfigWorkflow
from monai.handlers import CheckpointLoader

from scripts.common import command
from scripts.common.errors import CallError, UserError, did_you_mean, similar_path
from scripts.common.preflight import check_between, check_numbers, check_start, check_weights, check_writable, load_weights
from scripts.labels import check_scheme
from scripts.training.checkpoint import PretrainedWeights, ResumableCheckpoint


class RunsCode:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def fails(message: str, error: type[UserError] = CallError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(
    ("files", "overrides", "message"),
    [
        (TRAIN, {"epoch": 5}, "--epoch: nothing in this config reads it. Did you mean --epochs?"),
        (TRAIN, {"label_scheme": "spider"}, "--label_scheme: nothing in this config reads it. Did you mean --read_scheme?"),
        (TRAIN, {"optimiser": {"_target_": "torch.optim.SGD"}}, "--optimiser: nothing in this config reads it. Did you mean --optimizer?"),
        (INFERENCE, {"datset_dir": "x"}, "--datset_dir: nothing in this config reads it. Did you mean --dataset_dir?"),
        (INFERENCE, {"epochs": 3}, "--epochs: nothing in this config reads it."),
        (TOOLS, {"overwite": True}, "--overwite: nothing in this config reads it. Did you mean --overwrite?"),
        (TRAIN, {"debug": "maybe"}, "'maybe' is neither True nor False"),
    ],
)
def test_override_that_nothing_reads(files, overrides, message):
    with fails(message):
        ConfigWorkflow(files, workflow_type=None, bundle_root=str(BUNDLE), **overrides).initialize()


def test_overrides_that_clients_and_commands_need_pass():
    clients = {"run_name": "site", "tracking_uri": "x", "experiment_name": "y", "train::dataset::data": [], "validate::dataset::data": []}
    known = {"bundle_root": str(BUNDLE), "output_dir": "out", "datalist": "x.json", "seed": 3}  # `started` and others are read no more
    for run_id, overrides in {"run": clients | known, "show_batch": known, "check": known}.items():
        files = TOOLS if run_id == "check" else TRAIN
        ConfigWorkflow(files, workflow_type=None, run_id=run_id, **overrides).initialize()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"spacing": [0, 1, 1]}, "--spacing [0, 1, 1]: three numbers above 0 are needed"),
        ({"spacing": [1.0, 1.0]}, "--spacing [1.0, 1.0]: three numbers above 0 are needed"),
        ({"spacing": [1.0, float("nan"), 1.0]}, "--spacing [1.0, nan, 1.0]: three numbers above 0 are needed"),
        ({"epochs": 1, "batch_size": 0}, "--batch_size 0: a number above 0 is needed"),
        ({"epochs": "ten"}, "--epochs ten: a number above 0 is needed"),
    ],
)
def test_numbers(knobs, message):
    check_numbers(spacing=[1.0, 0.5, 2], epochs=1)
    with fails(message):
        check_numbers(**knobs)


@pytest.mark.parametrize("value", [-0.1, 0.91, "half", True, None, float("nan")])
def test_ranges(value):
    check_between(0, 0.9, overlap=0, other=0.9)
    with fails(f"--overlap {value}: a number from 0 to 0.9 is needed"):
        check_between(0, 0.9, overlap=value)


def test_one_network_is_not_trained_beside_a_random_one():
    check_start(train_only="both", pretrained="", resume="")
    check_start(train_only="outlines", pretrained="models/model.pt", resume="")
    check_start(train_only="levels", pretrained="", resume="output/x")
    with fails("--train_only levels keeps the rest of a trained network: set --pretrained, to models/model.pt for example"):
        check_start(train_only="levels", pretrained="", resume="")
    with fails("--train_only fine: choose both, outlines or levels"):
        check_start(train_only="fine", pretrained="", resume="")


def test_configs_check_their_numbers_first(tmp_path):
    for files in (TRAIN, INFERENCE):
        folders = {"dataset_dir": str(tmp_path / "none"), "output_dir": str(tmp_path / "out")}
        with fails("--spacing [0, 1, 1]: three numbers above 0 are needed"):
            run_bundle(files, spacing=[0, 1, 1], **folders)
        with fails("--num_workers two: a number from 0 to 256 is needed"):
            run_bundle(files, num_workers="two", **folders)
        with fails("--overlap 1.5: a number from 0 to 0.9 is needed"):
            run_bundle(files, overlap=1.5, **folders)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_rights():
    """Root may write everywhere: be nobody for a while."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_read_only_folder(without_rights):
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which nobody may not enter
        check_writable(folder, "output_dir")
        Path(folder).chmod(0o555)
        for target in (folder, f"{folder}/below"):
            message = "cannot be written to (Permission denied). Set --output_dir to a folder that can, on a disk with room."
            with fails(f"{target}: {message}"):
                check_writable(target, "output_dir")
        Path(folder).chmod(0o755)
        assert not list(Path(folder).iterdir())


def test_nearest_names(tmp_path):
    assert did_you_mean("vers", ("verse", "channel")) == " Did you mean verse?"
    assert did_you_mean("nothing like it", ("verse", "channel")) == ""
    with fails(
        "label scheme 'totalspine' does not exist; choose one of verse, channel, spider, totalspineseg. Did you mean totalspineseg?"
    ):
        check_scheme("totalspine")
    (tmp_path / "datalist.json").touch()
    assert similar_path(tmp_path / "datalst.json") == f" Did you mean {tmp_path / 'datalist.json'}?"
    assert similar_path(tmp_path / "none" / "datalist.json") == similar_path(tmp_path / "q") == ""


def test_weights_of_another_architecture(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    check_weights(str(path), "ckpt_path", torch.nn.Linear(3, 2))
    hint = "Give the --network_def and --labels that they were trained with, or another --ckpt_path."
    with fails(f"{path}: weights of another network: 1 of 2 layers differ, weight is (2, 3) there and (2, 4) here. {hint}"):
        check_weights(str(path), "ckpt_path", torch.nn.Linear(4, 2))
    with fails(f"{path}: weights of another network: 1 of 1 layers differ, bias is (2,) there and missing here. {hint}"):
        check_weights(str(path), "ckpt_path", torch.nn.Linear(3, 2, bias=False))
    torch.save({"model": torch.nn.Linear(3, 2).state_dict(), "trainer": {"iteration": 3}}, path)  # a last.pt
    check_weights(str(path), "ckpt_path", torch.nn.Linear(3, 2))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path, traces = tmp_path / "last.pt", tmp_path / "traces"
    torch.save({"weight": RunsCode(traces)}, path)
    network = torch.nn.Linear(3, 2)
    message = f"{path}: refused, it holds {os.mkdir.__module__}.mkdir beside weights, which could run code. Take a plain state_dict."
    with fails(message, UserError):
        load_weights(path)
    with fails(message, UserError):
        check_weights(str(path), "ckpt_path")
    with fails(message, UserError):
        PretrainedWeights(str(path), network).load(None)
    with pytest.raises(Exception, match="Weights only load failed"):
        CheckpointLoader(str(path), {"model": network})(None)
    with fails(message, UserError):
        ResumableCheckpoint(str(path), {}, resume=True).load(
            type("Engine", (), {"state": type("S", (), {"max_epochs": 1, "epoch_length": 1})})
        )
    assert not traces.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 half a file"])
def test_damaged_weights(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: cannot be read as weights \(.*\)\. Copy or train it again\.$"):
        load_weights(path)


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(("kind", "code"), [("UserError", 1), ("CallError", 2)])
def test_exit_codes(kind, code):
    fails = f"try:\n    1 / 0\nexcept ArithmeticError:\n    raise {kind}('a.nii.gz: mend it') from None"
    done = python(f"from scripts.common.errors import {kind}\n{fails}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "a.nii.gz: mend it\n")


def test_debug_shows_where():
    done = python("from scripts.common import errors\nerrors.show_tracebacks(True)\nraise errors.CallError('mend it')")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("scripts.common.errors.CallError: mend it\n")


def test_error_of_a_config_is_one_line_without_monais_wrapping(capsys):
    workflow = ConfigWorkflow(INFERENCE, workflow_type=None, bundle_root=str(BUNDLE), **{"network_def::fine::chanels": 3})
    workflow.initialize()
    with pytest.raises(RuntimeError) as error:
        workflow.parser.get_parsed_content("network_def")
    command.one_line(error.type, error.value, error.tb)
    line = "UNet.__init__() got an unexpected keyword argument 'chanels'. Did you mean channels? (--debug True shows where)\n"
    assert capsys.readouterr().err == line


def test_hooks_and_signals_are_left_alone_where_the_bundle_is_not_the_program():
    before = sys.excepthook
    command.begin()
    assert sys.excepthook is before
    assert not command.is_command()
