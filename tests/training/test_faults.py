"""A training ends with one line for a loss that is not finite, for lack of memory and for a signal; the last good checkpoint stays."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer

from scripts.common.errors import UserError
from scripts.data.dataset import CarriedError
from scripts.data.sampling import SeededSampler, SeededSteps
from scripts.training.checkpoint import ResumableCheckpoint
from scripts.training.faults import ErrorAdvice, FiniteLoss
from scripts.training.interruption import Interruption, StoppedError

SCANS = ["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz", "e.nii.gz"]


class Scans(torch.utils.data.Dataset):
    """A number for each scan, with noise from the seed of the draw."""

    def __init__(self, bad: str = "") -> None:
        self.bad = bad

    def __len__(self) -> int:
        return len(SCANS)

    def __getitem__(self, draw):
        noise = torch.Generator().manual_seed(draw.seed)
        image = torch.rand(1, generator=noise) + draw.index
        return {"image": image * float("nan" if SCANS[draw.index] == self.bad else 1), "label": image / 5, "scan": SCANS[draw.index]}


def training(folder: Path, epochs: int = 3, resume: bool = False, bad: str = "", loss=torch.nn.functional.mse_loss) -> SupervisedTrainer:
    """A network with dropout, batches of two scans: three steps an epoch."""
    torch.manual_seed(99 if resume else 0)
    network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    data = Scans(bad)
    sampler = SeededSampler(data, seed=8 if resume else 2)
    path = folder / "last.pt"
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=torch.utils.data.DataLoader(data, batch_size=2, sampler=sampler),
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        train_handlers=[
            SeededSteps(sampler),
            FiniteLoss(str(path)),
            ResumableCheckpoint(str(path), {"model": network, "optimizer": optimizer, "sampler": sampler}, resume=resume),
            ErrorAdvice({"batch_size": 2, "patch_size": [48, 80, 128]}),
        ],
    )


def handler(trainer: SupervisedTrainer, event: Events, kind: type):
    """The handler of this class."""
    return next(h.__self__ for h, *_ in trainer._event_handlers[event] if isinstance(getattr(h, "__self__", None), kind))


def interrupt(trainer: SupervisedTrainer, step: int, number: int) -> None:
    """Imitate a signal in the middle of a step."""
    interruption = handler(trainer, Events.EPOCH_COMPLETED, ResumableCheckpoint).interruption
    trainer.add_event_handler(Events.ITERATION_STARTED(once=step), lambda: interruption.note(number))


@pytest.fixture(autouse=True)
def _signals():
    """Signals of the test run itself stay as they are."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, action in before.items():
        signal.signal(number, action)


@pytest.fixture
def whole(tmp_path) -> dict:
    """Checkpoint after three epochs without an interruption."""
    training(tmp_path / "whole").run()
    return torch.load(tmp_path / "whole" / "last.pt", weights_only=True)


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(("step", "number", "code"), [(2, signal.SIGTERM, 143), (5, signal.SIGINT, 130), (6, signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path, whole, step, number, code, capfd):
    trainer = training(tmp_path)
    interrupt(trainer, step, number)
    message = f"stopped in epoch {-(-step // 3)} of 3, step {step}. The same command with --resume {tmp_path} goes on."
    with pytest.raises(StoppedError, match=f"^{message}$") as error:
        trainer.run()
    assert error.value.exit_code == code
    assert "stopping after this step" in capfd.readouterr().err
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == step
    resumed = training(tmp_path, resume=True)
    resumed.run()
    assert resumed.state.iteration == 9
    assert equal(torch.load(tmp_path / "last.pt", weights_only=True), whole)


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path, whole):
    trainer = training(tmp_path)
    interrupt(trainer, 9, signal.SIGTERM)
    trainer.run()
    assert equal(torch.load(tmp_path / "last.pt", weights_only=True), whole)


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(tmp_path, whole, monkeypatch):
    class KilledError(BaseException):
        pass

    save = torch.save

    def killed_in_the_second_save(states: dict, path: Path) -> None:
        if states["trainer"]["iteration"] == 6:
            Path(path).write_bytes(b"PK half of it")
            monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # a killed process does not tidy up
            raise KilledError
        save(states, path)

    monkeypatch.setattr(torch, "save", killed_in_the_second_save)
    with pytest.raises(KilledError):
        training(tmp_path).run()
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2 + 1  # with `whole`
    training(tmp_path, resume=True).run()
    assert equal(torch.load(tmp_path / "last.pt", weights_only=True), whole)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".partial_")) == ["last.pt", "whole"]


def test_signals_reach_the_handler_and_a_second_ctrl_c_stops_at_once(capfd):
    interruption = Interruption()
    interruption.listen()
    signal.raise_signal(signal.SIGTERM)
    assert interruption.signal_number == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "SIGTERM: stopping after this step, or the validation\n"


def test_nan_loss_names_the_scans_and_keeps_the_checkpoint(tmp_path):
    training(tmp_path, epochs=1).run()
    before = (tmp_path / "last.pt").read_bytes()
    trainer = training(tmp_path, resume=True, bad="d.nii.gz")
    weights = {}
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda: weights.update({k: v.clone() for k, v in trainer.network.state_dict().items()})
    )
    with pytest.raises(UserError, match=r"^the loss is nan in epoch 2, step \d, on .*\. .*last.pt keeps the state before it\. ") as error:
        trainer.run()
    named = str(error.value).split(" on ")[1].split(". ")[0].split(", ")
    assert "d.nii.gz" in named
    assert len(named) <= 2
    assert set(named) <= set(SCANS)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert equal(dict(trainer.network.state_dict()), weights)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "out of memory on cpu: lower --batch_size (now 2), then --patch_size (now [48, 80, 128])",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory on cpu: lower --batch_size (now 2)"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a process that reads scans was killed"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated."), "a process that reads scans was ended by SIGTERM"),
        (CarriedError("a.nii.gz: every voxel has the value 7."), "a.nii.gz: every voxel has the value 7."),
        (RuntimeError("shapes do not fit"), None),
    ],
)
def test_out_of_memory_says_which_knob_to_turn(tmp_path, error, message):
    def loss(*args):
        raise error

    with pytest.raises(UserError if message else RuntimeError) as raised:
        training(tmp_path, loss=loss).run()
    assert str(raised.value).startswith(message or "shapes do not fit")


def test_another_number_of_steps_or_an_older_file_is_refused(tmp_path):
    training(tmp_path, epochs=1).run()
    states = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save({**states, "trainer": {**states["trainer"], "epoch_length": 5}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last.pt: an epoch of its run has 5 steps, not 3. Resume with the same scans and --batch_size."):
        training(tmp_path, resume=True).run()
    del states["sampler"]
    torch.save(states, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last.pt: has no sampler, an earlier version wrote it. Start anew with --pretrained .*last.pt"):
        training(tmp_path, resume=True).run()
