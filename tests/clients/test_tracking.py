"""`--tracking mlflow`: what a local store holds after a training."""

from __future__ import annotations

import pytest
from conftest import NO_AUGMENTATION, TRAIN, run_bundle

pytestmark = pytest.mark.clients


def test_mlflow_holds_parameters_curves_figure_and_config(cohort, tmp_path):
    from mlflow import MlflowClient
    from monai.utils import path_to_sqlite_uri

    options = {"dataset_dir": str(cohort), "epochs": 3, "val_interval": 1, "tensorboard_cases": 1, "learning_rate": 5e-3, **NO_AUGMENTATION}
    run_bundle(TRAIN, **options, output_dir=str(tmp_path), tracking="mlflow")
    client = MlflowClient(tracking_uri=path_to_sqlite_uri(str(tmp_path / "mlruns.db")))
    (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.005"
    assert run.data.params["patch_size"] == "[16, 48, 64]"
    history = client.get_metric_history(run.info.run_id, "val_mean_dice")
    assert [m.step for m in history] == [1, 2, 3]
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert len(losses) == 3
    assert losses[-1].value < losses[0].value
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert any(n.startswith("config_") and n.endswith(".json") for n in names)
    (first,) = client.list_artifacts(run.info.run_id, "figures/epoch_0001")
    path = client.download_artifacts(run.info.run_id, first.path, str(tmp_path))
    with open(path, "rb") as handle:
        assert handle.read(4) == b"\x89PNG"
