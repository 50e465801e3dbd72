"""An interrupted run goes on as if it had not been interrupted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import BUNDLE
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.handlers import CheckpointSaver

from scripts.common.errors import UserError
from scripts.training import checkpoint
from scripts.training.checkpoint import OnCpu, ResumableCheckpoint
from scripts.training.interruption import StoppedError

DATA = [torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]]), torch.tensor([[-1.0, 0.0]])]


class Run:
    """A trainer with network, optimizer and schedule, and an evaluator whose score per epoch is given."""

    def __init__(self, folder: Path, resume: bool = False, scores: dict[int, float] | None = None) -> None:
        torch.manual_seed(1 if resume else 0)  # a resumed run starts from other weights
        self.network = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, total_iters=4)
        self.trainer = Engine(self.update)
        self.epochs: list[int] = []
        self.rates: list[float] = []
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self.note)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.schedule.step())
        best = None
        if scores is not None:
            best = CheckpointSaver(str(folder), {"model": self.network}, save_key_metric=True, key_metric_filename="model.pt")
            self.evaluator = Engine(lambda engine, batch: None)
            self.evaluator.state.key_metric_name = "dice"
            metrics = self.evaluator.state.metrics
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: metrics.update(dice=scores[self.trainer.state.epoch]))
            best.attach(self.evaluator)
            self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.evaluator.run([0]))
        save_dict = {"model": self.network, "optimizer": self.optimizer, "lr_scheduler": self.schedule}
        ResumableCheckpoint(str(folder / "last.pt"), save_dict, best, resume).attach(self.trainer)

    def update(self, engine: Engine, batch: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = ((self.network(batch) - 1) ** 2).sum()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def note(self) -> None:
        self.epochs.append(self.trainer.state.epoch)
        self.rates.append(self.optimizer.param_groups[0]["lr"])

    def __call__(self, epochs: int) -> Run:
        self.trainer.run(DATA, max_epochs=epochs)
        return self


def test_the_end_says_where_the_weights_are(tmp_path, capsys):
    Run(tmp_path)(1)
    assert capsys.readouterr().out == f"{tmp_path}/last.pt: last state\n"
    Run(tmp_path, scores={1: 0.5, 2: 0.4})(2)
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{tmp_path}/model.pt: best weights", f"{tmp_path}/last.pt: last state"]


def test_saved_file_holds_plain_tensors(tmp_path):
    run = Run(tmp_path, scores={1: 0.5, 2: 0.75})(2)
    states = torch.load(tmp_path / "last.pt", weights_only=True)
    assert list(states) == ["trainer", "model", "optimizer", "lr_scheduler", "best"]
    assert states["trainer"] == {"epoch_length": 3, "iteration": 6, "max_epochs": 2}
    assert torch.equal(states["model"]["weight"], run.network.weight)
    assert states["optimizer"]["state"][0]["step"].item() == 6
    assert states["lr_scheduler"]["last_epoch"] == 2
    assert [score for score, _ in states["best"]["_saved"]] == [0.75]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "model.pt"]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = Run(tmp_path / "whole")(4)
    Run(tmp_path / "part")(2)
    resumed = Run(tmp_path / "part", resume=True)(4)
    assert resumed.epochs == [3, 4]
    assert resumed.rates == pytest.approx(whole.rates[2:])
    assert resumed.trainer.state.iteration == 12
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict())
    for ours, theirs in zip(resumed.optimizer.state.values(), whole.optimizer.state.values()):
        torch.testing.assert_close(ours, theirs)
    assert torch.load(tmp_path / "part" / "last.pt", weights_only=True)["trainer"]["iteration"] == 12


def test_run_stopped_within_an_epoch_repeats_that_epoch(tmp_path):
    run = Run(tmp_path)

    @run.trainer.on(Events.ITERATION_COMPLETED(once=8))
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(4)
    resumed = Run(tmp_path, resume=True)(4)
    assert resumed.epochs == [3, 4]
    torch.testing.assert_close(resumed.network.state_dict(), Run(tmp_path / "whole")(4).network.state_dict())


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, monkeypatch):
    """This process got no signal, but another one got SIGTERM before step 2."""
    run = Run(tmp_path)
    monkeypatch.setattr(checkpoint.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(checkpoint.idist, "all_reduce", lambda value, op: 15 if run.trainer.state.iteration == 2 else value)
    with pytest.raises(StoppedError, match=r"^stopped in epoch 1 of 4, step 2\.") as error:
        run.trainer.run(DATA, max_epochs=4)
    assert error.value.exit_code == 143
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 2


def test_without_resume_the_file_is_not_read(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    assert Run(tmp_path)(1).epochs == [1]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 3


def test_missing_file(tmp_path):
    message = f"{tmp_path}/last.pt: nothing to resume. --resume takes the output_dir of an earlier run."
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Run(tmp_path, resume=True)(4)


@pytest.mark.parametrize("epochs", [1, 2])
def test_finished_run(tmp_path, epochs):
    Run(tmp_path)(2)
    before = (tmp_path / "last.pt").read_bytes()
    message = f"{tmp_path}/last.pt: its run has done 2 epochs already; set --epochs above that"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Run(tmp_path, resume=True)(epochs)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_best_score_survives(tmp_path):
    first = Run(tmp_path, scores={1: 0.8, 2: 0.6})
    first(1)
    best = {k: v.clone() for k, v in first.network.state_dict().items()}
    Run(tmp_path, resume=True, scores={2: 0.6, 3: 0.7})(3)
    torch.testing.assert_close(torch.load(tmp_path / "model.pt", weights_only=True), best)  # worse ones do not replace it
    better = Run(tmp_path, resume=True, scores={4: 0.9})(4)
    torch.testing.assert_close(torch.load(tmp_path / "model.pt", weights_only=True), better.network.state_dict())
    assert [s for s, _ in torch.load(tmp_path / "last.pt", weights_only=True)["best"]["_saved"]] == [0.9]


def test_weights_of_a_distributed_network_are_saved_bare(tmp_path):
    class Distributed(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    network = torch.nn.Linear(2, 1)
    trainer = Engine(lambda engine, batch: None)
    ResumableCheckpoint(str(tmp_path / "last.pt"), {"model": Distributed(network)}).attach(trainer)
    trainer.run([0], max_epochs=1)
    assert list(torch.load(tmp_path / "last.pt", weights_only=True)["model"]) == ["weight", "bias"]


def test_config_saves_after_schedule_and_validation():
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.yaml"))
    names = [h["_target_"].rsplit(".", 1)[-1] for h in parser["train::handlers"]]
    assert names.index("ResumableCheckpoint") > max(names.index("LrScheduleHandler"), names.index("ValidationHandler"))


def test_on_cpu_in_half_precision():
    module = torch.nn.BatchNorm1d(3)
    module.weight.data[:] = torch.tensor([1.0, 1 / 3, -2.0])
    state = OnCpu(module, torch.float16).state_dict()
    assert state["weight"].dtype == torch.float16
    assert state["num_batches_tracked"].dtype == torch.int64
    other = torch.nn.BatchNorm1d(3)
    other.load_state_dict(state)
    assert other.weight.dtype == torch.float32
    torch.testing.assert_close(other.weight.data, module.weight.data, rtol=5e-4, atol=0)
