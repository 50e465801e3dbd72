"""Wrong calls: one clear line with the nearest valid name, exit code 2, and nothing run or written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import monai.bundle
import pytest
import torch
from conftest import BUNDLE, EVALUATE, INFERENCE, SMALL, TOOLS, TRAIN, run_bundle
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.handlers import CheckpointLoader

from scripts.benchmark.benchmark import PARTS, benchmark
from scripts.common import command
from scripts.common.command import check_processes
from scripts.common.cores import cores
from scripts.common.errors import CallError, UserError, did_you_mean, similar_path
from scripts.common.preflight import (
    check_arguments,
    check_device,
    check_input,
    check_start,
    check_weights,
    check_writable,
    load_weights,
)
from scripts.data.crops import samples_of
from scripts.data.datalist import read_datalist
from scripts.labels import check_labelled, check_scheme
from scripts.tools.package import package
from scripts.training.checkpoint import PretrainedWeights, ResumableCheckpoint, check_resume


class RunsCode:
    """Object that makes a folder when its pickle is loaded."""

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
        (TRAIN, {"debug": "maybe"}, "--debug is 'maybe', neither True nor False"),
        (TRAIN, {"train_amp": 1}, "--train_amp is '1', neither True nor False"),
    ],
)
def test_override_that_nothing_reads(files, overrides, message):
    with fails(message):
        ConfigWorkflow(files, workflow_type=None, bundle_root=str(BUNDLE), **overrides).initialize()


def test_overrides_that_clients_and_commands_need_pass():
    clients = {"run_name": "site", "tracking_uri": "x", "experiment_name": "y", "train::dataset::data": [], "validate::dataset::data": []}
    known = {
        "bundle_root": str(BUNDLE),
        "output_dir": "out",
        "datalist": "x.json",
        "seed": 3,
    }  # the override leaves `started` and other keys unread
    for run_id, overrides in {"run": clients | known, "show_batch": known, "check": known}.items():
        files = TOOLS if run_id == "check" else TRAIN
        ConfigWorkflow(files, workflow_type=None, run_id=run_id, **overrides).initialize()


def test_switches_below_a_top_level_key():
    """`fire` reads `--inferer::inferer::tta false` as a text, which would count as true."""
    overrides = {"inferer::inferer::tta": "false", "inferer::amp": "False", "figures": "false"}
    workflow = ConfigWorkflow(INFERENCE, workflow_type=None, bundle_root=str(BUNDLE), **overrides)
    workflow.initialize()
    inferer = workflow.parser.get_parsed_content("inferer")
    assert (inferer.amp, inferer.inferer.tta, workflow.parser.get_parsed_content("figures")) == (False, False, False)
    with fails("--tta is 'no', neither True nor False"):
        ConfigWorkflow(INFERENCE, workflow_type=None, bundle_root=str(BUNDLE), **{"inferer::inferer::tta": "no"}).initialize()


def test_torchrun_without_an_overlay(monkeypatch):
    check_processes({"initialize": ["$import os"]}, "initialize")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for overlay in ("multi_gpu_train.yaml", "multi_gpu_inference.yaml"):
        check_processes(ConfigParser.load_config_file(BUNDLE / "configs" / overlay), "initialize")
    files = "configs/multi_gpu_train.yaml or configs/multi_gpu_inference.yaml"
    with fails(f"under torchrun every process would do everything: add {files} to --config_file"):
        check_processes(ConfigParser.load_config_file(INFERENCE), "initialize")


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed")
def test_a_tracker_that_is_not_installed():
    with fails("--tracking mlflow needs MLflow: pip install mlflow"):
        check_processes({"initialize": [], "trainer": {"handlers": [{"_target_": "MLFlowHandler"}]}}, "initialize")


def test_evaluate_before_train():
    files = [str(BUNDLE / "configs" / name) for name in ("evaluate.yaml", "train.yaml")]
    workflow = ConfigWorkflow(files, workflow_type=None, bundle_root=str(BUNDLE))
    workflow.initialize()
    with pytest.raises(CallError, match=r"^evaluate.yaml goes on top of train.yaml: python -m monai.bundle run --config_file "):
        workflow.run()


def test_mappings():
    draw = "scripts.phantoms.phantom.draw_phantom"
    check_arguments("phantom_options", {"lumbar": 6}, draw)
    known = "contrast, lumbar, wedged, slipped, scoliosis, spacing_mm, shape, oblique_deg, view, order"
    with fails(f"--phantom_options: there is no option 'lumbr'; choose from {known}. Did you mean lumbar?"):
        check_arguments("phantom_options", {"lumbr": 6}, draw, ["seed"])
    with fails(f"--phantom_options 3: options by name are needed, such as \"{{'contrast': ...}}\"; the options are {known}"):
        check_arguments("phantom_options", 3, draw, ["seed"])


def test_devices():
    check_device("cpu")
    check_device(torch.device("cpu"))
    with fails("--device gpu: not there (not a device of PyTorch, such as cuda). Leave it out, or set it to cpu."):
        check_device("gpu")
    with pytest.raises(CallError, match=r"^--device cuda:99: not there"):
        check_device("cuda:99")


def test_labelled_numbers():
    check_labelled([])
    check_labelled([20, 121])
    with pytest.raises(CallError, match=r"^--labelled \[20, 99\]: the label table has no 99\. It has 15 = T8, "):
        check_labelled([20, 99])
    with fails("--labelled 20: a list of numbers is needed, such as [15, 16]"):
        check_labelled(20)


def test_a_scan_or_a_list():
    check_input("a.nii", "", "", "")
    check_input("", "list.json", "testing", "*T2*")
    with fails("--image takes one scan, --datalist and --split several of them: leave out one or the other"):
        check_input("a.nii", "list.json", "testing", "")
    with fails("--image takes one scan, --pattern several of them: leave out one or the other"):
        check_input("a.nii", "", "", "*T2*")


def test_one_network_is_not_trained_beside_a_random_one():
    check_start(train_only="both", pretrained="", resume="")
    check_start(train_only="outlines", pretrained="models/model.pt", resume="")
    check_start(train_only="levels", pretrained="", resume="output/x")
    with fails("--train_only levels keeps the rest of a trained network: set --pretrained, to models/model.pt for example"):
        check_start(train_only="levels", pretrained="", resume="")
    with fails("--train_only fine: choose both, outlines or levels"):
        samples_of("fine")


def test_configs_check_their_numbers_first(tmp_path):
    for files in (TRAIN, INFERENCE):
        folders = {"dataset_dir": str(tmp_path / "none"), "output_dir": str(tmp_path / "out")}
        with fails("--spacing [0, 1, 1]: three numbers above 0 are needed"):
            run_bundle(files, spacing=[0, 1, 1], **folders)
        with fails("--num_workers two: a whole number from 0 to 256 is needed"):
            run_bundle(files, num_workers="two", **folders)
        with fails("--overlap 1.5: a number from 0 to 0.9 is needed"):
            run_bundle(files, overlap=1.5, **folders)
    for files in (TRAIN, INFERENCE, [TRAIN, EVALUATE]):
        for options, message in (
            ({"margin": "wide"}, "--margin wide: a whole number of at least 0 is needed"),
            ({"threshold": 1.5}, "--threshold 1.5: a number from 0.01 to 0.99 is needed"),
            ({"min_instance_mm3": -300}, "--min_instance_mm3 -300: a number of at least 0 is needed"),
            ({"min_speck_mm3": "x"}, "--min_speck_mm3 x: a number of at least 0 is needed"),
            ({"patch_size": [50, 80, 128]}, "--patch_size [50, 80, 128]: three multiples of 16 are needed"),
        ):
            with fails(message):
                run_bundle(files, **options, **folders)
        with pytest.raises(CallError, match=r"^--device cuda:99: not there"):
            run_bundle(files, device="cuda:99", **folders)
    with fails("--learning_rate -1: a number of at least 0 is needed; --max_gradient abc: a number of at least 0.001 is needed"):
        run_bundle(TRAIN, learning_rate=-1, max_gradient="abc", **folders)
    with fails("--repeat 3: a whole number for every source is needed, such as \"{'mine': 3}\""):
        run_bundle(TRAIN, repeat=3, **folders)
    with fails("--train_only fine: choose both, outlines or levels"):
        run_bundle(TRAIN, run_id="show_batch", train_only="fine", **folders)
    with fails("--image takes one scan, --split several of them: leave out one or the other"):
        run_bundle(INFERENCE, image="a.nii", split="testing", **folders)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command_id", "options", "message"),
    [
        ("summary", {"patch_size": 17}, "--patch_size 17: three multiples of 16 are needed"),
        ("prepare", {"validation_fraction": -0.5}, "--validation_fraction -0.5: a number from 0 to 1 is needed"),
        (
            "prepare",
            {"validation_fraction": 0.7, "testing_fraction": 0.5},
            "--validation_fraction 0.7 --testing_fraction 0.5: nothing is left",
        ),
        ("phantoms", {"phantom_options": {"lumbar": 7}}, "lumbar = 7: a phantom has 4, 5 or 6 lumbar vertebrae"),
        ("phantoms", {"phantom_options": {"view": "L9"}}, "view 'L9': this phantom has S4, S3, S2, S1, L5, "),
        ("prepare", {"labelled": [99]}, "--labelled [99]: the label table has no 99. It has 15 = T8, "),
        ("phantoms", {"phantom_options": {"lumbr": 6}}, "--phantom_options: there is no option 'lumbr'; choose from contrast, lumbar, "),
        ("measure", {"prediction": "none_seg.nii"}, "none_seg.nii: no such file. Set --prediction to one that exists."),
        ("measure", {"prediction": TOOLS, "image": "none.nii"}, "none.nii: no such file. Set --image to one that exists."),
        ("visualize", {"image": "none.nii", "prediction": TOOLS}, "none.nii: no such file. Set --image to one that exists."),
        ("visualize", {"image": TOOLS, "prediction": "none_seg.nii"}, "none_seg.nii: no such file. Set --prediction to one that exists."),
        (
            "visualize",
            {"image": TOOLS, "prediction": TOOLS, "reference": "none.nii"},
            "none.nii: no such file. Set --reference to one that exists.",
        ),
        ("rename", {"prediction": "none_seg.nii", "lowest": "L5"}, "none_seg.nii: no such file. Set --prediction to one that exists."),
        (
            "rename",
            {"prediction": TOOLS},
            "rename needs --prediction, a mask, and --lowest, the right name of its lowest body, or --lumbar",
        ),
        ("rename", {"lumbar": 7}, "--lumbar 7: a whole number from 0 to 6 is needed"),
        ("viewer_labels", {"label_scheme": "vers"}, "label scheme 'vers' does not exist; choose one of verse, channel, spider, "),
        ("benchmark", {"repeats": 0}, "--repeats 0: a whole number of at least 1 is needed"),
        ("phantoms", {"training": -1, "seed": "x"}, "--seed x: a whole number of at least 0 is needed; --training -1: a whole number"),
    ],
)
def test_commands_check_their_options_first(command_id, options, message, tmp_path):
    with pytest.raises(CallError, match=f"^{re.escape(message)}"):
        monai.bundle.run(command_id, config_file=TOOLS, bundle_root=str(BUNDLE), dataset_dir=str(tmp_path / "none"), **options)
    assert not list(tmp_path.iterdir())


def test_benchmark_checks_its_options_first(tmp_path):
    for options, message in (
        ({"parts": ["outs"]}, f"benchmark has no part outs; choose from {', '.join(PARTS)}. Did you mean ours?"),
        ({"scans": ["none.nii"]}, "none.nii: no such file. --scans takes a list of scans, or nothing for phantoms."),
        ({"folder_size": 1}, f"--folder_size 1: two scans for each of the {cores()} processes are needed"),
    ):
        with fails(message):
            benchmark(str(BUNDLE), str(tmp_path / "results.json"), **{"parts": [], **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["release", "evaluation"])
def test_a_file_where_a_folder_is_to_be(taken, cohort, tmp_path):
    path = tmp_path / "file"
    path.touch()
    option = "release_dir" if taken == "release" else "output_dir"
    with fails(f"{path}: cannot be written to (File exists). Set --{option} to a folder that can, on a disk with room."):
        if taken == "release":
            package(BUNDLE, path)
        else:
            network = ConfigWorkflow(INFERENCE, workflow_type=None, **SMALL).parser.get_parsed_content("network_def")
            torch.save(network.state_dict(), tmp_path / "model.pt")
            run_bundle([TRAIN, EVALUATE], dataset_dir=str(cohort), ckpt_path=str(tmp_path / "model.pt"), output_dir=str(path))


@pytest.fixture
def without_rights():
    """Become another user for a while, because root may write everywhere."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_read_only_folder(without_rights):
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which the user "nobody" may not enter
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


def test_resuming_what_cannot_go_on(tmp_path):
    folder, network = tmp_path / "run", torch.nn.Linear(3, 2)
    folder.mkdir()
    path = folder / "last.pt"
    torch.save({"model": network.state_dict(), "trainer": {"iteration": 3}}, path)
    check_resume(folder, network)
    check_resume(folder, network, str(folder))
    check_resume(folder, network, f"{tmp_path}/other/../run")
    hint = "Resume with the --network_def and --labels of that run, or start anew in another --output_dir."
    with fails(f"{path}: weights of another network: 1 of 2 layers differ, weight is (2, 3) there and (2, 4) here. {hint}"):
        check_resume(folder, torch.nn.Linear(4, 2))
    other = tmp_path / "other"
    with fails(f"--resume {folder} and --output_dir {other}: two folders. A run goes on in its own: leave --output_dir out."):
        check_resume(other, network, str(folder))
    with fails("--resume: its value is missing, the output_dir of an earlier run"):
        check_resume("True", network, True)
    torch.save(network.state_dict(), path)
    with fails(f"{path}: holds weights only, not the state of a training. Start anew with --pretrained {path}"):
        check_resume(folder, network)


def test_a_training_is_not_written_over(tmp_path):
    for name in ("last.pt", "model.pt"):
        (tmp_path / name).touch()
        with pytest.raises(
            CallError, match=rf"^{tmp_path}/\w+.pt: is there already. Go on with --resume {tmp_path}, or set another --output_dir"
        ):
            run_bundle(TRAIN, dataset_dir=str(tmp_path / "none"), output_dir=str(tmp_path))
        (tmp_path / name).unlink()


def test_a_folder_that_does_not_exist(tmp_path):
    with fails(f"{tmp_path}/scans: no such folder. --dataset_dir takes one."):
        read_datalist(tmp_path / "list.json", tmp_path / "scans")


def test_a_folder_is_no_command(tmp_path):
    with fails(f"run {tmp_path}: no such command in this config. Did you mean --dataset_dir {tmp_path}?"):
        command.check_command({}, str(tmp_path))


def test_train_checks_what_it_resumes_before_it_reads_scans(tmp_path):
    torch.save({"model": torch.nn.Linear(3, 2).state_dict(), "trainer": {"iteration": 3}}, tmp_path / "last.pt")
    with pytest.raises(CallError, match=rf"^{tmp_path}/last.pt: weights of another network: .* layers differ"):
        run_bundle(TRAIN, dataset_dir=str(tmp_path / "none"), resume=str(tmp_path))
    with pytest.raises(CallError, match=rf"^--resume {tmp_path} and --output_dir {tmp_path}/b: two folders\."):
        run_bundle(TRAIN, dataset_dir=str(tmp_path / "none"), resume=str(tmp_path), output_dir=str(tmp_path / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


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
        PretrainedWeights(str(path), network).attach(None)
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
    return subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, encoding="utf-8", timeout=100)


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
