"""A label table of one's own is checked, used by the configs, and used to fine-tune weights of another table."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, INFERENCE, NO_AUGMENTATION, TRAIN, run_bundle
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow

from scripts.common.errors import UserError
from scripts.common.inference_config import inference_config
from scripts.labels import METADATA_FILE, decode, encode, label_table, use_table
from scripts.levels.instances import Instance
from scripts.levels.level_sequence import name_bodies
from scripts.levels.logits import SpineLogits
from scripts.levels.name_levels import name_levels
from scripts.measure.doubts import doubts
from scripts.phantoms.phantom import write_cohort
from scripts.training.checkpoint import PretrainedWeights

LUMBAR = ["background", "L1", "L2", "L3", "L4", "L5", "L1/L2", "L2/L3", "L3/L4", "L4/L5"]


@pytest.fixture(autouse=True)
def _default_table_afterwards():
    yield
    use_table()


@pytest.fixture
def lumbar_table(tmp_path):
    """Write a table of five bodies and four discs, with their own numbers."""
    path = tmp_path / "lumbar.json"
    path.write_text(json.dumps([{"channel": c, "name": name, "verse": 10 * c} for c, name in enumerate(LUMBAR)]))
    return path


def test_use_table(lumbar_table):
    assert len(label_table()) == 24
    use_table(str(lumbar_table))
    assert [s.name for s in label_table()] == LUMBAR
    assert [s.kind for s in label_table()] == ["background", *["body"] * 5, *["disc"] * 4]
    values = torch.tensor([0, 10, 90, 50]).numpy()
    assert encode(values).tolist() == [0, 1, 9, 5]
    assert decode(encode(values), "verse").tolist() == values.tolist()
    use_table()
    assert len(label_table()) == 24


def test_metadata_is_a_table_itself():
    use_table(str(METADATA_FILE))
    assert label_table()[12].name == "S1"


@pytest.mark.parametrize("bodies", [1, 2])
def test_a_table_without_discs(tmp_path, bodies):
    """The fine network draws discs all the same."""
    (tmp_path / "bodies.json").write_text(json.dumps([{"channel": c, "name": name, "verse": c} for c, name in enumerate(LUMBAR[:6])]))
    use_table(str(tmp_path / "bodies.json"))
    kinds, gated = torch.zeros(3, 16, 24, 48), torch.zeros(7, 4, 6, 12)
    kinds[0] = 9
    for place in range(bodies):
        kinds[1, 4:12, 8:16, 32 - 20 * place : 40 - 20 * place] = 20
        gated[2 + place, ..., 8 - 5 * place : 10 - 5 * place] = 9  # L2 and L3
    kinds[2, 4:12, 8:16, 22:30] = 20
    found = name_levels(SpineLogits.of_networks(kinds, gated, (4, 4, 4)), np.diag([2, 2, 2, 1.0]), 300.0)
    assert np.unique(found.channel_map).tolist() == [0, *range(2, 2 + bodies)]
    assert [row["name"] for row in found.report["structures"]] == ["L2", "L3"][:bodies]


def test_a_table_of_the_end_of_the_spine(tmp_path):
    """Only one level is counted in such a table, so votes cannot be off."""
    names = ("background", "L5", "L6", "S1", "L5/S1", "L6/S1")
    (tmp_path / "end.json").write_text(json.dumps([{"channel": c, "name": name, "verse": c} for c, name in enumerate(names)]))
    use_table(str(tmp_path / "end.json"))
    bodies = [Instance(n, np.array([0.0, 0.0, z]), 30000.0) for n, z in ((1, 70.0), (2, 35.0), (3, 0.0))]
    log_p = np.full((3, len(names)), -4.0)
    log_p[range(3), (1, 2, 3)] = -0.1
    assert name_bodies(bodies, log_p).channels == [1, 2, 3]
    assert name_bodies(bodies[:2], log_p[:2]).channels == [1, 2]


@pytest.mark.parametrize("names", [("L4", "L5"), ("L4", "L5", "L4/L5")])
def test_a_network_of_such_a_table_is_scripted(tmp_path, names):
    rows = [{"channel": c, "name": name, "verse": c} for c, name in enumerate(("background", *names))]
    (tmp_path / "few.json").write_text(json.dumps(rows))
    use_table(str(tmp_path / "few.json"))
    net = inference_config(str(BUNDLE)).get_parsed_content("network_def").eval()
    x = torch.rand(1, 1, 21, 50, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = net(x)
        assert logits.shape[1] == len(rows)
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(torch.jit.script(net)(x), logits)


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match=r"none.json: no label table there"):
        use_table(str(tmp_path / "none.json"))


def test_levels_follow_each_other_without_the_exceptions_of_the_sacrum(lumbar_table):
    use_table(str(lumbar_table))
    log_p = torch.full((3, len(LUMBAR)), -4.0).numpy()
    for body, channel in enumerate((3, 4, 5)):
        log_p[body, channel] = -0.1
    fields = Instance.__dataclass_fields__
    bodies = []
    for z in (70.0, 35.0, 0.0):
        known = {"volume_mm3": 30000.0, "centre_mm": torch.tensor([0.0, 0.0, z]).numpy()}
        bodies.append(Instance(**{k: known.get(k) for k in fields}))
    assert name_bodies(bodies, log_p).channels == [3, 4, 5]


def test_without_a_sacrum_in_the_table_the_probability_is_told(lumbar_table):
    use_table(str(lumbar_table))
    bodies = [{"name": "L4"}, {"name": "L5"}]
    told = doubts({"structures": bodies, "uncertain": True, "sequence_probability": 0.71})
    assert told == ["the levels are uncertain (probability 0.71)"]


def test_fine_tuning_to_another_table(trained, lumbar_table, tmp_path, capfd):
    """One override is enough: the head starts at random, which is printed, and all other weights are taken over."""
    write_cohort(
        tmp_path, training=1, validation=1, testing=0, seed=5, contrast="T2w", view="L3", shape=(12, 64, 96), spacing_mm=(2.5, 4.9)
    )
    relabel(tmp_path)
    options = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "epochs": 1, "val_interval": 1, **NO_AUGMENTATION}
    run_bundle(TRAIN, **options, pretrained=str(trained / "model.pt"), labels=str(lumbar_table))
    said = capfd.readouterr()
    assert "coarse.1.weight is not taken over, it starts at random ((24, 16, 1, 1, 1) there, (10, 16, 1, 1, 1) here)" in said.out + said.err
    new = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert new["coarse.1.weight"].shape[0] == len(LUMBAR)
    old = torch.load(trained / "model.pt", weights_only=True)
    changed = (new["fine.model.0.conv.unit0.conv.weight"] - old["fine.model.0.conv.unit0.conv.weight"]).abs().max()
    assert 0 < changed < 0.05  # one step from the old weights, not a new start


def relabel(folder) -> None:
    """Replace the numbers of the default table by those of LUMBAR."""
    use_table()
    numbers = {s.verse: 10 * LUMBAR.index(s.name) for s in label_table() if s.name in LUMBAR}
    path = folder / "datalist.json"
    splits = json.loads(path.read_text())
    for entry in (e for entries in splits.values() for e in entries):
        image = nib.load(folder / entry["label"])
        values = np.asarray(image.dataobj).astype(int)
        nib.save(nib.Nifti1Image(np.vectorize(lambda v: numbers.get(v, 0))(values).astype(np.uint8), image.affine), folder / entry["label"])
        entry["labelled"] = [numbers[v] for v in entry["labelled"] if v in numbers]
    path.write_text(json.dumps(splits))


def test_weights_of_another_network(tmp_path):
    torch.save({"other": torch.zeros(3)}, tmp_path / "model.pt")
    handler = PretrainedWeights(str(tmp_path / "model.pt"), torch.nn.Linear(2, 3))
    with pytest.raises(UserError, match=r"model.pt: weights of another network, 0 of 2 layers fit"):
        handler.attach(Engine(lambda engine, batch: None))


def test_weights_of_another_network_are_refused_before_a_scan_is_read(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.transforms.read_scan", lambda path: pytest.fail(f"{path} was read"))
    torch.save({"other": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model.pt: weights of another network, 0 of \d+ layers fit; give its --network_def, or leave"):
        run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(tmp_path / "out"), pretrained=str(tmp_path / "model.pt"))
    assert not (tmp_path / "out").exists()


def test_a_head_of_another_size_is_left_out(tmp_path):
    def network(classes: int) -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, classes))

    source, target = network(4), network(5)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    head = target[2].weight.clone()
    PretrainedWeights(str(tmp_path / "model.pt"), target).attach(Engine(lambda engine, batch: None))
    assert torch.equal(target[0].weight, source[0].weight)
    assert torch.equal(target[2].weight, head)


def test_pretrained_weights_do_not_replace_those_of_the_server(tmp_path):
    """Every round of a federated training is a run of the same trainer, whose weights were set before."""
    source, target = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    trainer = Engine(lambda engine, batch: None)
    PretrainedWeights(str(tmp_path / "model.pt"), target).attach(trainer)
    assert torch.equal(target.weight, source.weight)
    torch.nn.init.ones_(target.weight)
    trainer.run([0], max_epochs=1)
    assert torch.equal(target.weight, torch.ones(3, 2))


@pytest.mark.parametrize(("kind", "config"), [("train", TRAIN), ("infer", INFERENCE)])
def test_a_client_that_never_runs_gets_the_table_too(lumbar_table, kind, config):
    workflow = ConfigWorkflow(config, workflow_type=kind, bundle_root=str(BUNDLE), labels=str(lumbar_table))
    workflow.initialize()
    assert workflow.network_def.coarse[-1].out_channels == len(LUMBAR)
