"""TorchScript and ONNX, exported by the commands of docs/clients.md: the same mask, in axes of any length."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigParser
from monai.bundle.utils import load_bundle_config
from monai.transforms import Compose

from scripts.labels import label_table
from scripts.transforms import SaveImageLabelsd

pytestmark = [pytest.mark.clients, pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")]
REAL = BUNDLE.parent / "shared" / "data" / "menezesreis" / "menezesreis20_T2w.nii.gz"
EXAMPLE = (48, 80, 128)  # voxels of the example with which ONNX is exported


@pytest.fixture(scope="module")
def parser() -> ConfigParser:
    parser = load_bundle_config(str(BUNDLE), "inference.yaml")
    parser.update({"amp": False})  # a script fuses layers, and bfloat16 then rounds elsewhere
    return parser


@pytest.fixture(scope="module")
def network(parser) -> torch.nn.Module:
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    return network


def export(command: str, folder: Path) -> Path:
    """Run the command of the documentation that holds the word `command`; it writes to `folder` instead of `output`."""
    blocks = re.findall(r"```bash\n(.*?)```", (BUNDLE / "docs" / "clients.md").read_text(encoding="utf-8"), re.DOTALL)
    (line,) = (c for block in blocks for c in block.replace("\\\n", " ").splitlines() if f"monai.bundle {command} " in c)
    words = [w.replace("output/", f"{folder}/") for w in shlex.split(line)]
    done = subprocess.run([sys.executable, *words[1:]], cwd=BUNDLE, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(words[words.index("--filepath") + 1])


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory) -> Path:
    pytest.importorskip("onnx")
    return export("onnx_export", tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module", params=["phantom", "real"])
def scan(request, parser, small_scan) -> torch.Tensor:
    """A whole scan on the working grid, shape 11XYZ, in [0, 1]; no axis is as long as that of the example, or divides by four."""
    if request.param == "real" and not REAL.exists():
        pytest.skip("needs ../shared/data")
    path = small_scan if request.param == "phantom" else REAL
    image = parser.get_parsed_content("preprocessing")({"image": str(path)})["image"].as_tensor()[None]
    image = image[..., 1:, :-1, 1:] if request.param == "phantom" else image
    assert all(a != b and a % 4 for a, b in zip(image.shape[2:], EXAMPLE))
    return image.contiguous()


@pytest.fixture(scope="module")
def expected(scan, network) -> np.ndarray:
    """Channel of every voxel by PyTorch, XYZ."""
    with torch.no_grad():
        channels = network(scan).argmax(1)[0].numpy()
    assert len(np.unique(channels)) > 3  # not an empty scan
    return channels


def agrees(logits: np.ndarray, expected: np.ndarray) -> None:
    """At least 99.9 % of all voxels, and of those of the spine, have the same channel."""
    same = logits[0].argmax(0) == expected
    spine = (expected > 0) | (logits[0].argmax(0) > 0)
    print(f"\nsame channel: {same.mean():.6f} of {same.size} voxels, {same[spine].mean():.6f} of {spine.sum()} of the spine")
    assert same.mean() >= 0.999
    assert same[spine].mean() >= 0.999


def test_torchscript_gives_the_same_mask(parser, network, small_scan, tmp_path):
    """Through the inferer and the post-processing of inference.yaml, whose file name and metadata the archive holds."""
    extra = {"inference.json": "", "metadata.json": ""}
    script = torch.jit.load(export("ckpt_export", tmp_path), _extra_files=extra).eval()
    assert ConfigParser.load_config_file(BUNDLE / "configs" / "inference.yaml") == json.loads(extra["inference.json"])
    assert json.loads(extra["metadata.json"])["version"] == ConfigParser.load_config_file(BUNDLE / "configs" / "metadata.json")["version"]
    masks = [label_map(parser, net, small_scan) for net in (network, script)]
    assert len(np.unique(masks[0])) > 3
    np.testing.assert_array_equal(*masks)


def label_map(parser: ConfigParser, network: torch.nn.Module, path: Path) -> np.ndarray:
    """Channels on the scan's own grid, 1XYZ, as inference.yaml writes them."""
    item = parser.get_parsed_content("preprocessing")({"image": str(path)})
    with torch.no_grad():
        pred = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    steps = [t for t in parser.get_parsed_content("postprocessing").transforms if not isinstance(t, SaveImageLabelsd)]
    return Compose(steps)({**item, "pred": pred})["pred"].numpy()


def test_onnx_names_and_axes(onnx_file):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    (image,), (pred,) = model.graph.input, model.graph.output
    assert (image.name, pred.name) == ("image", "pred")
    axes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (image, pred)]
    assert axes[0] == ["batch", 1, "x", "y", "z"]
    assert axes[1][:2] == ["batch", len(label_table())]
    assert all(isinstance(a, str) for a in axes[1][2:])
    assert [p.name for p in onnx_file.parent.iterdir()] == [onnx_file.name]  # the weights are in the file


def test_onnx_runtime_gives_the_same_channels(onnx_file, scan, expected):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    agrees(session.run(["pred"], {"image": scan.numpy()})[0], expected)


def test_openvino_gives_the_same_channels(onnx_file, scan, expected):
    openvino = pytest.importorskip("openvino")
    # float32: by default it computes in bfloat16 or float16 where the hardware does
    model = openvino.Core().compile_model(onnx_file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    agrees(model({"image": scan.numpy()})["pred"], expected)
