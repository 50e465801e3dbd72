"""A MONAI Label server with the bundle: what a viewer such as 3D Slicer asks of it, over HTTP."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE

from scripts.labels import encode, label_table
from scripts.phantoms.phantom import write_cohort

pytestmark = pytest.mark.clients

NAME = "spine_mri_segmentation"
VENV = BUNDLE / ".venv-monailabel"
START, ANSWER, TRAINING = 600, 900, 1800  # seconds, for two busy CPU cores


class Server:
    """`monailabel start_server`, in a process group of its own, and requests to it."""

    def __init__(self, app: Path, studies: Path, log: Path) -> None:
        self.app, self.studies, self.log = app, studies, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = ["--app", str(app), "--studies", str(studies), "--host", "127.0.0.1", "--port", str(self.port)]
        conf = {"models": NAME, "zoo_source": "ngc", "sam2": "false"}  # the default source asks GitHub, sam2 downloads a model
        options += [word for key, value in conf.items() for word in ("--conf", key, value)]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [VENV / "bin" / "monailabel", "start_server", *options],
                stdout=out, stderr=subprocess.STDOUT, env=environment(), cwd=app, start_new_session=True,
            )  # fmt: skip

    def request(self, method: str, path: str, body: bytes | None = None, content: str = "application/json", timeout: float = 60) -> bytes:
        call = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body, method=method, headers={"Content-Type": content})
        with urllib.request.urlopen(call, timeout=timeout) as answer:
            return answer.read()

    def json(self, method: str, path: str, body: object = None) -> dict:
        return json.loads(self.request(method, path, None if body is None else json.dumps(body).encode()))

    def put_label(self, image: str, file: Path) -> dict:
        """What the button "Submit label" of a viewer sends: the file as a form."""
        border = uuid.uuid4().hex
        head = f'--{border}\r\nContent-Disposition: form-data; name="label"; filename="{file.name}"\r\n\r\n'
        body = head.encode() + file.read_bytes() + f"\r\n--{border}--\r\n".encode()
        return json.loads(self.request("PUT", f"/datastore/label?image={image}&tag=final", body, f"multipart/form-data; boundary={border}"))

    def wait_until_up(self) -> None:
        end = time.monotonic() + START
        while True:
            assert self.process.poll() is None, self.tail()
            try:
                self.request("GET", "/info/", timeout=START)
                return
            except OSError:
                assert time.monotonic() < end, self.tail()
                time.sleep(1)

    def tail(self) -> str:
        """The end of the server's log, which the trainings write to too."""
        return f"\n{self.log}:\n" + self.log.read_text(errors="replace")[-6000:]

    def stop(self) -> None:
        for sent in (signal.SIGTERM, signal.SIGKILL):  # to the whole group: a training is a process of its own
            try:
                os.killpg(self.process.pid, sent)
                self.process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def environment() -> dict[str, str]:
    """Without what would point to this test's own packages; `monailabel` starts the `python` that comes first in PATH."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV") and not k.startswith("MONAI")}
    return {**kept, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Folder `training` with two small phantoms and their labels in VerSe numbers."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_cohort(folder, training=2, validation=0, testing=0, seed=3, contrast="T2w", view="L3", shape=(10, 48, 72), spacing_mm=(2.2, 4.4))
    return folder / "training"


@pytest.fixture(scope="module")
def server(cohort, tmp_path_factory) -> Iterator[Server]:
    assert (VENV / "bin" / "monailabel").exists(), "no .venv-monailabel; make it with: bash tests/clients/setup_monai_label.sh"
    folder = tmp_path_factory.mktemp("monailabel")
    download = [VENV / "bin" / "monailabel", "apps", "--download", "--name", "monaibundle", "--output", folder]
    done = subprocess.run(download, env=environment(), cwd=folder, capture_output=True, encoding="utf-8", timeout=START)
    assert done.returncode == 0, done.stdout + done.stderr
    app = folder / "monaibundle"
    for part in ("configs", "scripts", "models"):  # a copy: the training replaces the weights
        shutil.copytree(BUNDLE / part, app / "model" / NAME / part, ignore=shutil.ignore_patterns("__pycache__"))
    studies = folder / "studies"
    studies.mkdir()
    for image in cohort.glob("*w.nii.gz"):
        shutil.copy(image, studies)
    server = Server(app, studies, folder / "server.log")
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


def test_info_lists_the_bundle(server):
    info = server.json("GET", "/info/")
    assert list(info["models"]) == list(info["trainers"]) == [NAME]
    model = info["models"][NAME]
    assert (model["type"], model["dimension"]) == ("segmentation", 3)
    assert model["labels"] == {s.name.lower(): s.channel for s in label_table()[1:]}
    assert list(model["labels"].values()) == list(range(1, 24))  # 3D Slicer numbers what it gets and sends by their order
    assert model["config"]["model_filename"] == ["model.pt"]
    assert info["datastore"]["total"] == 2


def test_inference_is_our_own(server, tmp_path):
    image = sorted(server.studies.glob("*.nii.gz"))[0]
    name = image.name.removesuffix(".nii.gz")
    try:
        answer = server.request("POST", f"/infer/{NAME}?image={name}&output=image", b"", timeout=ANSWER)
    except (urllib.error.URLError, TimeoutError) as error:
        pytest.fail(f"{error}{server.tail()}")
    served = nib.Nifti1Image.from_bytes(gzip.decompress(answer))
    scan = nib.load(image)
    assert served.shape == scan.shape
    np.testing.assert_allclose(served.affine, scan.affine, atol=1e-3)
    options = ["--image", str(image), "--output_dir", str(tmp_path), "--label_scheme", "channel", "--figures", "False"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml", *options]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, encoding="utf-8", timeout=ANSWER)
    assert done.returncode == 0, done.stderr[-3000:]
    own = np.asarray(nib.load(tmp_path / f"{name}_seg.nii.gz").dataobj)
    labels = np.asarray(served.dataobj)
    assert labels.dtype == np.uint8
    assert len(np.unique(own)) > 5  # background, bodies and discs
    assert (labels == own).mean() > 0.999
    assert (labels[own > 0] == own[own > 0]).mean() > 0.995


def test_training_on_submitted_labels_updates_the_model(server, cohort, tmp_path):
    """Numbered as 3D Slicer numbers them, by the order of the labels in /info, which is that of the channels."""
    for file in sorted(cohort.glob("*_seg.nii.gz")):
        label = nib.load(file)
        image = next(server.studies.glob(file.name.replace("_seg.nii.gz", "_*w.nii.gz"))).name.removesuffix(".nii.gz")
        channels = nib.Nifti1Image(encode(np.asarray(label.dataobj)), label.affine)
        nib.save(channels, tmp_path / f"{image}.nii.gz")
        assert server.put_label(image, tmp_path / f"{image}.nii.gz")["label"] == image
    assert server.json("GET", "/info/")["datastore"]["completed"] == 2
    weights = server.app / "model" / NAME / "models" / "model.pt"
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    task = server.json("POST", f"/train/{NAME}", {"max_epochs": 1, "val_split": 0.5, "device": "cpu"})
    assert task["status"] in ("SUBMITTED", "RUNNING"), task
    end = time.monotonic() + TRAINING
    while task["status"] in ("SUBMITTED", "RUNNING") and time.monotonic() < end:
        time.sleep(2)
        task = server.json("GET", "/train/")
    assert task["status"] == "DONE", server.tail()
    assert hashlib.sha256(weights.read_bytes()).hexdigest() != before
    assert [p.name for p in weights.parent.glob("*.pt")] == ["model.pt"]  # every other one would be offered as a model
    (run,) = (server.app / "model" / NAME / "output").iterdir()
    assert (run / "model.pt").read_bytes() == weights.read_bytes()
    log = server.log.read_text(errors="replace")
    assert f"Add Checkpoint Loader for Path: {weights}" in log  # it went on from the weights that were served
