"""Paths and names on the command line, and commands that do not exist."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import BUNDLE, EVALUATE, INFERENCE, TOOLS, TRAIN, fails
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.common import options
from scripts.common.command import check_command, check_overrides, one_line
from scripts.common.options import NEEDED, TEXTS, typed_value


def run_command(*arguments: str, cwd: Path = BUNDLE) -> subprocess.CompletedProcess:
    """Run `python -m monai.bundle run` in a process of its own."""
    line = [sys.executable, "-m", "monai.bundle", "run", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, encoding="utf-8", timeout=100)


def last_line(done: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def initialized(files: str | list[str], **overrides) -> ConfigWorkflow:
    workflow = ConfigWorkflow(files, workflow_type=None, bundle_root=str(BUNDLE), **overrides)
    workflow.initialize()
    return workflow


def typed(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(options, "is_command", lambda: True)
    monkeypatch.setattr(sys, "argv", ["monai", "run", *arguments])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset_dir", "2024_05"], "2024_05"),
        (["--dataset-dir=1e5"], "1e5"),
        (["--dataset_dir", "a", "--dataset_dir", "b"], "b"),
        (["--dataset_dir", "--output_dir", "o"], None),
        (["--output_dir", "o", "--dataset_dir"], None),
        (["--output_dir", "o"], None),
    ],
)
def test_what_was_typed(monkeypatch, arguments, expected):
    typed(monkeypatch, *arguments)
    assert typed_value("dataset_dir") == expected


@pytest.mark.parametrize(
    ("text", "value"), [("20240501", 20240501), ("2024_05", 202405), ("1e5", 1e5), ("a,b", ("a", "b")), ("[a]", ["a"]), ("scans", "scans")]
)
def test_paths_are_what_was_typed_whatever_fire_makes_of_them(monkeypatch, text, value):
    typed(monkeypatch, "--dataset_dir", text)
    parser = initialized(INFERENCE, dataset_dir=value).parser
    assert parser.get_parsed_content("dataset_dir") == text
    assert parser.get_parsed_content("dataset::data::dataset_dir") == text


@pytest.mark.parametrize("file", sorted((BUNDLE / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_option_that_is_a_path_or_a_name_is_read_as_a_text(file):
    defaults = {key: value for key, value in ConfigParser.load_config_file(file).items() if isinstance(value, str) and "::" not in key}
    texts = {key for key, value in defaults.items() if not value.startswith(("$", "@")) or "'/" in value}  # other options are no paths
    assert texts - TEXTS == set()
    assert {key for key in defaults if key.endswith(("_dir", "_path"))} - NEEDED == set()


def test_a_folder_of_digits_for_the_labels_with_a_sacrum(monkeypatch):
    typed(monkeypatch, "--sacrum_dir", "20240501")
    assert initialized(TOOLS, run_id="label_sacrum", sacrum_dir=20240501).parser.get_parsed_content("sacrum_dir") == "20240501"


def test_numbers_of_a_program_become_texts_and_the_rest_stays():
    parser = initialized(TRAIN, dataset_dir=7, labels=None, resume=True, also_train_on=["a", 8]).parser
    assert parser.get_parsed_content("datalist") == "7/datalist.json"
    assert parser.get_parsed_content("labels") is None
    assert parser.get_parsed_content("resume") is True
    assert parser.get_parsed_content("also_train_on") == ["a", "8"]


@pytest.mark.parametrize(
    ("files", "name", "value", "expected"),
    [
        (TRAIN, "also_train_on", "folder", ["folder"]),
        (TOOLS, "parts", "ours", ["ours"]),
        (TOOLS, "scans", 20240501, ["20240501"]),
        (TOOLS, "scans", "", []),
        (TOOLS, "scans", "$['a']", ["a"]),
    ],
)
def test_one_is_a_list_of_one(files, name, value, expected):
    assert initialized(files, **{name: value}).parser.get_parsed_content(name) == expected


HASH = "MONAI reads # in an option as ::. Rename what is called so, or give a link to it without #."


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (INFERENCE, {"dataset_dir": True}, "--dataset_dir: its value is missing"),
        (INFERENCE, {"output_dir": None}, "--output_dir None: a path or a name is needed"),
        (TRAIN, {"datalist": False}, "--datalist False: a path or a name is needed"),
        (INFERENCE, {"dataset_dir": "/data/scans#2"}, f"--dataset_dir /data/scans#2: {HASH}"),
        (TRAIN, {"also_train_on": ["a", "b#c"]}, f"--also_train_on b#c: {HASH}"),
    ],
)
def test_paths_that_are_none(files, options, message):
    with fails(message):
        initialized(files, **options)


def test_double_colons_that_were_typed_stay(monkeypatch):
    typed(monkeypatch, "--dataset_dir", "a::b")
    assert initialized(INFERENCE, dataset_dir="a::b").parser.get_parsed_content("dataset_dir") == "a::b"


def test_other_files_beside_the_configs_do_not_stop_a_command(tmp_path):
    (tmp_path / "a.yaml").write_text("served: 1\n")
    (tmp_path / "b.yml").write_text("also: 2\n")
    (tmp_path / "c.json").write_text('{"more": 3}')
    overrides = {"served": 1, "also": 2, "more": 3}
    check_overrides(overrides, set(), tmp_path)
    (tmp_path / ".a.yaml.swp").write_bytes(b"b0VIM\xff\x00")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "a.yaml~").write_text("typo: 1\n")
    (tmp_path / ".hidden.yaml").write_text("typo: 1\n")
    (tmp_path / "mine.yaml").write_text("half: [1, \n")
    (tmp_path / "mine.json").write_text('{"half": ')
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2\n")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\xff\n")
    (tmp_path / "text.yaml").write_text("typo\n")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "folder.yaml").mkdir()
    check_overrides(overrides, set(), tmp_path)
    for value in (1, 2):
        with fails("--typo: nothing in this config reads it."):
            check_overrides({"typo": value}, set(), tmp_path)
    with fails("--served: nothing in this config reads it."):
        check_overrides({"served": 2}, set(), tmp_path)


def test_nearest_command():
    config = ConfigWorkflow(TOOLS, workflow_type=None).parser.config
    check_command(config, "explore")
    commands = (
        "check, phantoms, prepare, explore, label_sacrum, summary, visualize, rename, viewer_labels, measure, compare, record, package, "
        "benchmark"
    )
    with fails(f"run explor: no such command in this config; choose one of {commands}. Did you mean explore?"):
        check_command(config, "explor")
    with fails(f"run: the name of a command is missing behind it; choose one of {commands}."):
        check_command(config, "run")
    with fails("run show: no such command in this config; choose one of show_batch, run. Did you mean show_batch?"):
        check_command(ConfigWorkflow(TRAIN, workflow_type=None).parser.config, "show")


def test_what_is_wrong_in_a_process_of_a_pool_is_one_line(capsys):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(FileNotFoundError) as caught:
        pool.submit(os.listdir, "/nowhere").result()
    one_line(caught.type, caught.value, caught.tb)
    assert capsys.readouterr().err == "[Errno 2] No such file or directory: '/nowhere'. (--debug True shows where)\n"


def test_a_command_that_does_not_exist_ends_in_one_line():
    done = run_command("explor", "--config_file", TOOLS)
    assert done.returncode == 2
    assert last_line(done).startswith("run explor: no such command in this config")


def test_evaluation_without_the_training_it_goes_on_top_of():
    done = run_command("--config_file", EVALUATE)
    files = "\"['configs/train.yaml','configs/evaluate.yaml']\""
    assert last_line(done) == f"evaluate.yaml goes on top of train.yaml: python -m monai.bundle run --config_file {files} --dataset_dir DIR"
    assert done.returncode == 2


def test_a_folder_of_digits_and_one_whose_name_was_forgotten(small_scan, tmp_path):
    (tmp_path / "2024_05").mkdir()
    for path in small_scan.parent.iterdir():
        shutil.copy(path, tmp_path / "2024_05")
    options = ["prepare", "--config_file", TOOLS, "--bundle_root", str(BUNDLE), "--testing_fraction", "0", "--validation_fraction", "0"]
    done = run_command(*options, "--dataset_dir", "2024_05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(json.loads((tmp_path / "2024_05" / "datalist.json").read_text())["training"]) == 1
    done = run_command(*options, "--dataset_dir", cwd=tmp_path)
    assert (done.returncode, last_line(done)) == (2, "--dataset_dir: its value is missing")


def test_bundle_root_that_is_no_bundle(tmp_path):
    message = f"--bundle_root {tmp_path}: no bundle there, it has no configs/metadata.json. Set it to the bundle's folder."
    for files, run_id in ((INFERENCE, "run"), (TOOLS, "check")):
        workflow = ConfigWorkflow(files, workflow_type=None, run_id=run_id, bundle_root=str(tmp_path))
        with fails(message):
            workflow.initialize()
            workflow.run()
