"""The release: its content, that it is always the same, and that it works without the rest of the repository."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import monai.bundle.scripts
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, TOOLS
from monai.bundle import download, load, push_to_hf_hub
from monai.bundle.utils import load_bundle_config

from scripts.common.errors import UserError
from scripts.labels import label_table
from scripts.tools.package import NAME, package, release_files

VERSION = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"]
ZIP = f"{NAME}_v{VERSION}.zip"
pytestmark = pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """Run `package` and return its release_dir."""
    folder = tmp_path_factory.mktemp("release")
    monai.bundle.run(run_id="package", config_file=TOOLS, bundle_root=str(BUNDLE), release_dir=str(folder))
    return folder


@pytest.fixture(scope="module")
def downloaded(release, tmp_path_factory) -> Path:
    """Return the bundle as `monai.bundle.download` unpacks it."""
    folder = tmp_path_factory.mktemp("bundles")
    download(name=NAME, url=(release / ZIP).as_uri(), bundle_dir=folder, progress=False)
    return folder / NAME


@pytest.fixture
def small_bundle(tmp_path) -> Path:
    """Write the parts of a release, with weights of a few bytes, and files that must not get into it."""
    root = tmp_path / "bundle"
    for name in ("configs", "docs", "scripts"):
        shutil.copytree(BUNDLE / name, root / name)
    for name in ("LICENSE", "README.md", "requirements.txt"):
        shutil.copy(BUNDLE / name, root / name)
    for name in (
        "models/model.pt", "models/model.ts", "models/last.pt", "tests/test_a.py", "output/a.nii.gz", ".git/config", "docs/.hidden",
        "scripts/__pycache__/a.pyc", "scripts/.cache/a.py", "configs/monailabel_train.json", "eval/schema.json",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_what_is_released(small_bundle):
    names = release_files(small_bundle)
    assert names == sorted(names)
    assert {n.split("/")[0] for n in names} == {"LICENSE", "README.md", "requirements.txt", "configs", "docs", "models", "scripts"}
    assert [n for n in names if n.startswith("models/")] == ["models/model.pt"]
    assert {"configs/metadata.json", "configs/inference.yaml", "configs/train.yaml", "configs/logging.conf", "docs/README.md"} <= {*names}
    assert {"docs/data_license.txt", "docs/example.png", "scripts/__init__.py", "scripts/network.py", "scripts/demo.sh"} <= {*names}
    assert not [n for n in names if re.search(r"(^|/)(\.|__pycache__|test)|monailabel_train|\.pyc$", n)]


def test_zip_checksum_and_folder_hold_the_same(release):
    files = release_files(BUNDLE)
    digest, name = (release / f"{ZIP}.sha256").read_text().split("  ")
    assert (digest, name) == (hashlib.sha256((release / ZIP).read_bytes()).hexdigest(), f"{ZIP}\n")
    with zipfile.ZipFile(release / ZIP) as archive:
        assert archive.namelist() == [f"{NAME}/{f}" for f in files]
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        for f in files:
            assert archive.read(f"{NAME}/{f}") == (BUNDLE / f).read_bytes() == (release / NAME / f).read_bytes()
    assert sorted(p.relative_to(release / NAME).as_posix() for p in (release / NAME).rglob("*") if p.is_file()) == files
    assert {p.name for p in release.iterdir()} == {ZIP, f"{ZIP}.sha256", NAME}


def test_same_files_give_the_same_zip(small_bundle, tmp_path, capsys):
    first = package(small_bundle, tmp_path / "a")
    for path in small_bundle.rglob("*"):
        os.utime(path, (1e9, 1e9))
    second = package(small_bundle, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert capsys.readouterr().out.splitlines()[1] == f"sha256 {hashlib.sha256(first.read_bytes()).hexdigest()}"
    (small_bundle / "docs" / "experiments.md").unlink()
    (small_bundle / "models" / "model.pt").write_bytes(b"other")
    assert package(small_bundle, tmp_path / "b").read_bytes() != first.read_bytes()
    assert (tmp_path / "b" / NAME / "models" / "model.pt").read_bytes() == b"other"
    assert not (tmp_path / "b" / NAME / "docs" / "experiments.md").exists()  # the folder is replaced, not filled up


def test_links_lead_to_files_of_the_release(release):
    folder = release / NAME
    for page in folder.rglob("*.md"):
        targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")) if "://" not in t]
        assert not [t for t in targets if t and not (page.parent / t).is_file()], page


def refused(small_bundle: Path, output_dir: Path, message: str) -> None:
    before = sorted(output_dir.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        package(small_bundle, output_dir)
    assert "\n" not in str(error.value)
    assert sorted(output_dir.rglob("*")) == before


def test_missing_parts_are_named(small_bundle, tmp_path):
    out = tmp_path / "out"
    (small_bundle / "LICENSE").rename(tmp_path / "LICENSE")
    refused(small_bundle, out, r"bundle: no LICENSE there")
    (tmp_path / "LICENSE").rename(small_bundle / "LICENSE")
    (small_bundle / "models" / "model.pt").unlink()
    refused(small_bundle, out, r"models.model\.pt: no weights there")
    refused(tmp_path, out, r"metadata\.json: not there. Set --bundle_root")


def test_a_large_file_is_refused(small_bundle, tmp_path):
    for size, is_refused in ((25_000_000, True), (24_999_999, False)):
        os.truncate(small_bundle / "models" / "model.pt", size)
        if is_refused:
            refused(small_bundle, tmp_path / "out", r"model\.pt: 25\.0 MB, but the model zoo takes files below 25 MB")
        else:
            assert "models/model.pt" in release_files(small_bundle)


def test_a_version_without_a_word_in_the_changelog_is_refused(small_bundle, tmp_path):
    path = small_bundle / "configs" / "metadata.json"
    path.write_text(path.read_text().replace(f'"version": "{VERSION}"', '"version": "9.9.9"'))
    refused(small_bundle, tmp_path / "out", r"metadata\.json: version 9\.9\.9 is not in the changelog")


def test_no_folder_but_an_export_is_replaced(small_bundle, tmp_path):
    own = small_bundle.rename(tmp_path / NAME)
    refused(own, tmp_path, rf"{NAME}: exists already and is not an export of this bundle")
    (tmp_path / "out" / NAME).mkdir(parents=True)
    (tmp_path / "out" / NAME / "thesis.txt").write_text("x")
    refused(own, tmp_path / "out", rf"{NAME}: exists already and is not an export of this bundle")


def test_what_was_added_to_an_export_stays(small_bundle, tmp_path):
    package(small_bundle, tmp_path)
    (tmp_path / NAME / "docs" / "thesis.md").write_text("x")
    refused(small_bundle, tmp_path, rf"^{tmp_path / NAME}/docs/thesis\.md: not part of a release")


def test_downloaded_zip_segments_a_scan(downloaded, small_scan, tmp_path):
    """Inference runs in a process of its own, from an empty folder, without PYTHONPATH."""
    config = str(downloaded / "configs" / "inference.yaml")
    options = {"bundle_root": downloaded, "image": small_scan, "output_dir": "masks", "figures": False, "num_workers": 0}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *(f"--{k}={v}" for k, v in options.items())]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    stem = small_scan.name.removesuffix(".nii.gz")
    mask = nib.load(tmp_path / "masks" / f"{stem}_seg.nii.gz")
    truth = nib.load(small_scan.with_name(f"{stem.removesuffix('_T2w')}_seg.nii.gz"))
    np.testing.assert_allclose(mask.affine, truth.affine, atol=1e-4)
    found, drawn = (np.asarray(m.dataobj) for m in (mask, truth))
    assert {*np.unique(found)} <= {s.verse for s in label_table()}
    both = np.count_nonzero((found > 0) & (drawn > 0))
    assert 2 * both / (np.count_nonzero(found) + np.count_nonzero(drawn)) > 0.7
    report = json.loads((tmp_path / "masks" / f"{stem}_seg.json").read_text())
    assert len(report["structures"]) == len(np.unique(found)) - 1 >= 3
    assert [p.name for p in tmp_path.iterdir()] == ["masks"]


def test_load_gives_the_shipped_weights(downloaded):
    network = load_bundle_config(str(downloaded), "inference.yaml").get_parsed_content("network_def")
    loaded = load(NAME, model=network, bundle_dir=downloaded.parent, source="monaihosting", device="cpu")
    state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k].float()) for k, v in loaded.state_dict().items())  # the file is float16


def test_push_to_the_hub_leaves_the_readme_of_the_repository_alone(release, tmp_path, monkeypatch):
    calls = []
    hub = SimpleNamespace(
        create_repo=lambda **options: calls.append(("create_repo", options)),
        upload_folder=lambda **options: calls.append(("upload_folder", options)) or "https://hub/owner/name",
        create_tag=lambda **options: calls.append(("create_tag", options)),
    )
    monkeypatch.setattr(monai.bundle.scripts, "huggingface_hub", SimpleNamespace(HfApi=lambda token: hub))
    export = shutil.copytree(release / NAME, tmp_path / NAME)
    readme, card = ((BUNDLE / name).read_text(encoding="utf-8") for name in ("README.md", "docs/README.md"))
    assert push_to_hf_hub(repo="owner/name", name=NAME, bundle_dir=str(tmp_path), version=VERSION) == "https://hub/owner/name"
    assert [c[0] for c in calls] == ["create_repo", "upload_folder", "create_tag"]
    assert calls[1][1] == {"repo_id": "owner/name", "folder_path": str(export)}
    assert calls[2][1]["tag"] == VERSION
    front, pushed = (export / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)
    assert "license: apache-2.0" in front
    assert pushed == card
    assert (BUNDLE / "README.md").read_text(encoding="utf-8") == readme
    assert sorted(p.relative_to(export).as_posix() for p in export.rglob("*") if p.is_file()) == release_files(BUNDLE)
