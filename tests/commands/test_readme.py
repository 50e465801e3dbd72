"""The README's commands run as they stand there, its table agrees with the label table, and the model card with the results."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from conftest import BUNDLE, SMALL

from scripts.common.errors import UserError
from scripts.data.masks import beside
from scripts.labels import label_table
from scripts.tools.model_card import END, START, record, results_tables

README = (BUNDLE / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`((?:python|torchrun)[^`]*monai\.bundle run[^`]*)`", README)
GRID = {k: v for k, v in SMALL.items() if k != "bundle_root"}


def test_readme_is_short_and_names_every_command():
    assert len(README.splitlines()) < 150
    tools = (BUNDLE / "configs" / "tools.yaml").read_text()
    for command in re.findall(r"monai\.bundle run (\w+) ", tools):
        assert f"run {command} --config_file configs/tools.yaml" in README


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if not c.startswith("torchrun")], ids=lambda c: c.split("--dataset_dir")[0][-40:].strip()
)
def test_command_runs(command, cohort, trained, evaluated, tmp_path):
    """In a process of its own, on the small cohort; `torchrun` is run by test_configs."""
    scan = next((cohort / "training").glob("*w.nii.gz"))
    name = f"{scan.name.removesuffix('.nii.gz')}_seg.nii.gz"
    words = {"DIR": str(cohort), "NAME": "test", "output/phantoms": str(tmp_path / "phantoms")}
    mask = evaluated / "training" / name
    files = {"--image": scan, "--prediction": mask, "--reference": mask, "--metrics": evaluated / "metrics.json"}
    files |= {"--before": files["--metrics"], "--after": files["--metrics"]}
    arguments = shlex.split(command)[1:]
    arguments = [str(files[a]) if word == "FILE" else words.get(word, word) for a, word in zip(["", *arguments], arguments)]
    extra = {"output_dir": tmp_path / "out"}
    if "phantoms" in arguments:
        extra = {"training": 1, "validation": 1, "testing": 0, "workers": 1}
    elif "prepare" in arguments:
        extra = {"datalist": tmp_path / "datalist.json"}
    elif "label_sacrum" in arguments:
        extra = {"sacrum_dir": tmp_path / "sacrum"}
    elif {"summary", "check", "compare"} & set(arguments):
        extra = {}
    elif "record" in arguments:
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "README.md").write_text(f"{START}\n{END}\n")
        shutil.copytree(BUNDLE / "configs", tmp_path / "configs")  # its metadata are written to
        extra = {"bundle_root": tmp_path}
    elif "rename" in arguments:
        copy = shutil.copytree(mask.parent, tmp_path / "out") / name  # it is changed
        bodies = [s.name for s in label_table() if s.kind == "body" and s.name != "L6"]
        named = {row["name"] for row in json.loads(beside(copy, ".json").read_text())["structures"]}
        arguments[arguments.index(str(mask))] = str(copy)
        extra = {"lowest": [above for above, body in pairwise(bodies) if body in named][-1]}
    elif "benchmark" in arguments:
        few = {"machine": {}, "repeats": 1, "scans": {"a": {"shape": [9, 32, 51], "spacing_mm": [4.9, 2.5, 2.5]}}}
        (tmp_path / "speed.json").write_text(json.dumps(few))
        extra = {"results": tmp_path / "speed.json", "parts": []}
    elif "package" in arguments:
        extra = {"release_dir": tmp_path / "release"}
    elif "configs/inference.yaml" in arguments:
        extra |= {**GRID, "ckpt_path": trained / "model.pt", "split": "testing", "datalist": cohort / "datalist.json"}
    elif "configs/tools.yaml" not in arguments:
        extra |= {**GRID, "epochs": 1, "val_interval": 1}
        if "evaluate" in command:
            extra["ckpt_path"] = trained / "model.pt"
            del extra["epochs"]
    options = [f"--{k}={v}" for k, v in extra.items()]
    environment = {**os.environ, "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1"}
    done = subprocess.run(
        [sys.executable, *arguments, *options], cwd=BUNDLE, env=environment, capture_output=True, encoding="utf-8", timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = {
        "phantoms": "phantoms/datalist.json", "prepare": "datalist.json", "explore": "out/explore.png",
        "label_sacrum": "sacrum/datalist.json",
        "viewer_labels": "out/verse_itksnap.txt", "rename": f"out/{name}",
        "visualize": f"out/{scan.name.removesuffix('.nii.gz')}.png", "measure": "out/measured_spines.csv", "record": "docs/results.json",
        "benchmark": "speed.md", "package": "release/spine_mri_segmentation/LICENSE", "evaluate": "out/metrics.csv",
        "train.yaml": "out/last.pt", "inference": "out/testing",
    }  # fmt: skip
    named = [path for key, path in expected.items() if key in " ".join(arguments[:6]) and "show_batch" not in arguments]
    written = named[0] if named else ""
    if written:
        assert (tmp_path / written).exists()
    else:
        word = {"check": "ok", "summary": "weights", "compare": " -> ", "show_batch": f"{tmp_path}/out/batch.png"}[arguments[3]]
        assert word in done.stdout


@pytest.mark.skipif(not (BUNDLE / ".venv").exists(), reason="needs the environment that scripts/test.sh makes")
def test_demo_on_own_scans(cohort, tmp_path):
    options = ["--dataset_dir", cohort.name, "--output_dir", "out", "--epochs", "1", "--val_interval", "1"]
    command = ["bash", str(BUNDLE / "scripts" / "demo.sh"), *options]
    done = subprocess.run(command, cwd=cohort.parent, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("identified") == 5  # a table by structure and one by source, before and after, and the comparison
    out = cohort.parent / "out"
    written = ["explore/explore.png", "before/metrics.csv", "train/model.pt", "masks/testing", "after/metrics.csv"]
    assert done.stdout.count(" -> ") == 1 + 3 * 6  # the title, and a row for bodies, discs and both, of six metrics
    assert all((out / path).exists() for path in written)
    assert len(list((out / "after").rglob("*_seg.png"))) == 2


@pytest.mark.skipif(not (BUNDLE / ".venv").exists(), reason="needs the environment that scripts/test.sh makes")
def test_retrain(cohort, tmp_path):
    """The steps of the shipped weights, on two phantoms and with a small network; the last one is interrupted and goes on."""

    def retrain(epochs: int) -> None:
        options = [f"--{k}={v}" for k, v in {**GRID, "epochs": epochs}.items()]
        command = ["bash", str(BUNDLE / "scripts" / "retrain.sh"), "--dataset_dir", cohort.name, "--output_dir", str(tmp_path), *options]
        environment = {**os.environ, "PHANTOMS": "2"}
        done = subprocess.run(command, cwd=cohort.parent, env=environment, capture_output=True, encoding="utf-8", timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]

    retrain(epochs=1)
    listed = json.loads((tmp_path / "phantoms" / "datalist.json").read_text())["training"]
    assert len(listed) == 2
    added = json.loads((tmp_path / "sacrum" / "datalist.json").read_text())["training"]
    steps = -(-(len(added) + 2) // 2)
    both, outlines, levels = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("both", "outlines", "levels"))
    assert [last["trainer"]["iteration"] for last in (both, outlines, levels)] == [steps] * 3
    for before, after, trained in ((both, outlines, "fine."), (outlines, levels, "coarse.")):  # each goes on from the one before
        changed = {name.split(".")[0] + "." for name, t in before["model"].items() if not torch.equal(t, after["model"][name])}
        assert changed == {trained}
    assert (tmp_path / "levels" / "model.pt").exists()
    (tmp_path / "levels" / "over").unlink()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and "levels" not in p.parts}
    retrain(epochs=2)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert torch.load(tmp_path / "levels" / "last.pt", weights_only=True)["trainer"]["iteration"] == 2 * steps


@pytest.mark.parametrize("script", ["retrain.sh", "results.sh"])
def test_scripts_need_a_dataset(script):
    done = subprocess.run(["bash", str(BUNDLE / "scripts" / script)], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: bash scripts/{script} --dataset_dir DIR")


def test_demo_deletes_nothing_of_others(cohort, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "label.nii.gz").touch()
    command = ["bash", str(BUNDLE / "scripts" / "demo.sh"), "--dataset_dir", str(cohort), "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path}: not empty, and not of an earlier demo. Set --output_dir to a folder of its own.\n"
    assert (tmp_path / "masks" / "label.nii.gz").exists()


def test_wrong_call_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml", "--dataset_dir", str(tmp_path)]
    done = subprocess.run([*command, "--output_dir", str(tmp_path / "out")], cwd=BUNDLE, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    expected = f"{tmp_path}: no scans found. Expected .nii.gz, .nii, .mha, .mhd, .nrrd, .nhdr files"
    assert done.stderr.strip().splitlines()[-1].startswith(expected)


def test_label_numbers():
    numbers = {s.name: (s.verse, s.channel, s.spider, s.totalspineseg) for s in label_table()}
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:6]] for line in README.splitlines() if line.startswith("|")}
    for row, names in {"T8 ... T12": ["T8", "T12"], "L1 ... L5, L6": ["L1", "L5"], "S1": ["S1"]}.items():
        for cell, values in zip(rows[row], zip(*(numbers[n] for n in names))):
            expected = " ... ".join("none" if v is None else str(v) for v in values)
            assert cell.startswith(expected)
    discs = [s for s in label_table() if s.is_disc]
    assert rows["disc below a vertebra v"][1] == f"{discs[0].channel} ... {discs[-1].channel}"


def test_model_card_shows_the_results():
    docs = BUNDLE / "docs"
    results = json.loads((docs / "results.json").read_text(encoding="utf-8"))
    card = (docs / "README.md").read_text(encoding="utf-8")
    assert card.split(START)[1].split(END)[0].strip() == results_tables(results)


def test_record_replaces_one_evaluation(tmp_path):
    row = {"source": "a", "group": "body", "scans": 1, "n": 2, "dice": 0.5, "dice_sd": 0.25, "level_dice": 0.5, "asd_mm": None}
    row |= {"hd95_mm": None, "missed": 2, "identified": 0.0, "all_levels": 0.0}
    worst = {
        "case": "c",
        "source": "a",
        "n": 2,
        "dice": 0.5,
        "level_dice": 0.25,
        "identified": 0.5,
        "worst_structure": "L1",
        "worst_level_dice": 0.0,
    }
    metrics, metadata = tmp_path / "metrics.json", tmp_path / "metadata.json"
    metadata.write_text('{"version": "1.0.0", "eval_metrics": {}}')
    (tmp_path / "README.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    for dice in (0.4, 0.5):
        metrics.write_text(json.dumps({"by_structure": [], "by_source": [{**row, "dice": dice}], "worst_cases": [worst]}))
        record(metrics, "x", tmp_path, metadata)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n{START}\n| evaluation | source |")
    assert text.endswith(f"{END}\nafter\n")
    assert "| x | a | body | 1 | 2 | 0.500 | 0.250 | 0.500 | - | - | 2 | 0.000 | 0.000 |" in text
    assert "| x | c | a | 2 | 0.500 | 0.250 | 0.500 | L1 | 0.000 |" in text
    assert "0.400" not in text
    with pytest.raises(UserError, match="record needs --name and --metrics"):
        record(metrics, "", tmp_path, metadata)


def test_missing_results_keep_the_card(tmp_path):
    with pytest.raises(UserError, match=r"none.json"):
        record(tmp_path / "none.json", "x", tmp_path, tmp_path / "metadata.json")
    assert not list(tmp_path.iterdir())
