"""Save everything that a training needs to go on after an interruption, and start it from there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from scripts.common.errors import CallError, shown, similar_path
from scripts.common.files import write_whole
from scripts.common.options import is_command
from scripts.common.preflight import check_fit, load_weights
from scripts.data.sampling import SeededSampler
from scripts.network import unwrapped
from scripts.training.interruption import Interruption, StoppedError


class OnCpu:
    """A network in the form in which it is saved.

    Its tensors are on the CPU, so that the file loads anywhere, and its names lack the `module.` of DDP.

    Args:
        module: the network.
        dtype: type of the floating point tensors in the file; None keeps theirs.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype | None = None) -> None:
        self.module = unwrapped(module)
        self.dtype = dtype

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {name: tensor.cpu() for name, tensor in self.module.state_dict().items()}
        return {name: t.to(self.dtype) if self.dtype and t.is_floating_point() else t for name, t in state.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.module.load_state_dict(state)


class PretrainedWeights:
    """Start a training from the weights of another one.

    A layer whose size differs, such as the head for another label table, keeps its random weights, and a log line says so.

    Args:
        path: file with a state_dict.
        network: network to load it into.
    """

    def __init__(self, path: str, network: torch.nn.Module) -> None:
        self.path = path
        self.network = unwrapped(network)

    def attach(self, engine: Engine) -> None:
        """Load the weights (`pretrained_weights`) now: at the start of a federated run they would replace the weights of its server."""
        state, fitting = pretrained_weights(self.path, self.network)
        own = self.network.state_dict()
        self.network.load_state_dict(fitting, strict=False)
        for name in sorted(own.keys() - fitting.keys()):
            sizes = f"{tuple(state[name].shape)} there, {tuple(own[name].shape)} here"
            engine.logger.warning(f"{self.path}: {name} is not taken over, it starts at random ({sizes})")


def pretrained_weights(path: str, network: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the layers of a file, and those of them that fit the network in size.

    Raises:
        CallError: if the layers have other names, or most have other sizes: the weights are those of another network.
    """
    state, own = load_weights(path), unwrapped(network).state_dict()
    state = state.get("model", state)  # a last.pt holds more than the weights
    fitting = {name: t for name, t in state.items() if name in own and own[name].shape == t.shape}
    if state.keys() != own.keys() or 2 * len(fitting) < len(own):
        fix = "give its --network_def, or leave --pretrained out"
        raise CallError(f"{path}: weights of another network, {len(fitting)} of {len(own)} layers fit; {fix}")
    return state, fitting


class ResumableCheckpoint:
    """Write `last.pt` after every epoch, and when Ctrl-C or SIGTERM ends the run; with `resume`, start from it.

    MONAI's `CheckpointSaver` cannot hold the trainer itself (a circular reference in the config) and numbers its files; this handler
    gets the trainer when it is attached. The file is replaced as a whole. It only holds tensors and numbers, so that it loads with
    `weights_only=True`.

    All randomness comes from the seed and the step (`scripts.data.sampling`), so these two are the whole random state. A run that is
    stopped within an epoch goes on with the next step of that epoch. A run that is told to stop during a validation stops after it,
    because the result of the validation belongs to the checkpoint.

    Args:
        path: file to write.
        save_dict: named objects with `state_dict` and `load_state_dict`: network, optimizer, schedule.
        best_saver: the `CheckpointSaver` of the best model; its best score is kept, so that a resumed run cannot replace a better model.
        resume: load the file before the first epoch.
    """

    def __init__(self, path: str, save_dict: Mapping[str, Any], best_saver: Any = None, resume: bool = False) -> None:
        self.path = Path(path)
        self.save_dict = dict(save_dict)
        self.best_saver = best_saver
        self.resume = resume
        self.interruption = Interruption()

    def attach(self, engine: Engine) -> None:
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        if is_command():
            engine.add_event_handler(Events.STARTED, self.interruption.listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        engine.add_event_handler(Events.COMPLETED, self.tell)

    def _objects(self, engine: Engine) -> dict[str, Any]:
        objects = {"trainer": engine, **self.save_dict}
        if self.best_saver is not None:
            objects["best"] = self.best_saver._key_metric_checkpoint
        return {name: OnCpu(o) if isinstance(o, torch.nn.Module) else o for name, o in objects.items()}

    def save(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            states = {name: o.state_dict() for name, o in self._objects(engine).items()}
            write_whole(self.path, lambda partial: torch.save(states, partial))

    def end_step(self, engine: Engine) -> None:
        self._hear_others()
        # after the last step, wait for the validation
        if self.interruption.signal_number and engine.state.iteration % engine.state.epoch_length:
            self.save(engine)
            self._stop(engine)

    def end_epoch(self, engine: Engine) -> None:
        self._hear_others()
        self.save(engine)
        if self.interruption.signal_number and engine.state.epoch < engine.state.max_epochs and not engine.should_terminate:
            self._stop(engine)

    def tell(self, engine: Engine) -> None:
        """Print where the weights are."""
        if idist.get_rank() == 0:
            for path, what in ((self.path.with_name("model.pt"), "best weights"), (self.path, "last state")):
                if path.exists():
                    print(shown(f"{path}: {what}"))

    def _hear_others(self) -> None:
        """Share a signal among all processes, so that they stop after the same step and none waits for the gradients of another."""
        if idist.get_world_size() > 1:
            self.interruption.signal_number = int(idist.all_reduce(self.interruption.signal_number or 0, "MAX")) or None

    def _stop(self, engine: Engine) -> None:
        """Raise a `StoppedError` that tells how to go on."""
        place = f"stopped in epoch {engine.state.epoch} of {engine.state.max_epochs}, step {engine.state.iteration}"
        raise StoppedError(f"{place}. The same command with --resume {self.path.parent} goes on.", self.interruption.signal_number)

    def load(self, engine: Engine) -> None:
        """Load the checkpoint into the trainer and the objects of `save_dict`.

        Raises:
            CallError: as `read_checkpoint` and `check_unfinished`, or if an epoch of its run had another number of steps.
        """
        states = read_checkpoint(self.path)
        epochs, steps = engine.state.max_epochs, engine.state.epoch_length
        check_unfinished(self.path, states, epochs)
        objects = self._objects(engine)
        if objects.keys() - states.keys():
            lacking = ", ".join(sorted(objects.keys() - states.keys()))
            raise CallError(f"{self.path}: has no {lacking}, an earlier version wrote it. Start anew with --pretrained {self.path}")
        if steps not in (None, states["trainer"]["epoch_length"]):
            before = states["trainer"]["epoch_length"]
            raise CallError(
                f"{self.path}: an epoch of its run has {before} steps, not {steps}. Resume with the same scans and --batch_size."
            )
        for name, o in objects.items():
            if isinstance(o, torch.optim.Optimizer):  # it keeps the options of this call; the schedule sets the rate
                options = [{k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")} for group in o.param_groups]
                o.load_state_dict(states[name])
                for group, own in zip(o.param_groups, options):
                    group.update(own)
            else:
                o.load_state_dict(states[name])
        engine.state.max_epochs = epochs
        loader = engine.state.dataloader
        if isinstance(getattr(loader, "sampler", None), SeededSampler):
            loader.sampler.skip = engine.state.iteration % engine.state.epoch_length * loader.batch_size


def check_new(folder: str | Path) -> None:
    """Refuse a folder that holds the weights of a training, which a new one would replace.

    Raises:
        CallError: if `folder` holds a `last.pt` or `model.pt`.
    """
    for name in ("last.pt", "model.pt"):
        if (Path(folder) / name).exists():
            raise CallError(f"{Path(folder) / name}: is there already. Go on with --resume {folder}, or set another --output_dir.")


def check_resume(folder: str | Path, network: torch.nn.Module, resume: bool | str = True, epochs: float = math.inf) -> None:
    """Refuse to resume a run whose `last.pt` cannot be continued.

    Args:
        folder: output_dir of the run.
        network: network to continue with.
        resume: value of the option --resume: the folder again, or True.
        epochs: epoch at which the run should end.

    Raises:
        CallError: if `resume` lacks its value or is another folder, or if `last.pt` is missing, is no checkpoint, is that of another
            network, or belongs to a run that is over.
    """
    if resume is True and str(folder) == "True":  # so train.yaml passes an option without a value
        raise CallError("--resume: its value is missing, the output_dir of an earlier run")
    if str(resume).lower() != "true" and Path(resume).resolve() != Path(folder).resolve():
        raise CallError(f"--resume {resume} and --output_dir {folder}: two folders. A run goes on in its own: leave --output_dir out.")
    path = Path(folder) / "last.pt"
    fix = "Resume with the --network_def and --labels of that run, or start anew in another --output_dir."
    states = read_checkpoint(path)
    check_fit(path, states.get("model", {}), network, fix)
    check_unfinished(path, states, epochs)


def check_unfinished(path: Path, states: Mapping[str, Any], epochs: float) -> None:
    """Refuse a run that has already done all its epochs.

    Args:
        path: file of the checkpoint, for the message.
        states: result of `read_checkpoint`.
        epochs: epoch at which the run should end.

    Raises:
        CallError: if the run has done that many epochs.
    """
    done = states["trainer"].get("iteration", 0) // states["trainer"].get("epoch_length", math.inf)
    if done >= epochs:
        raise CallError(f"{path}: its run has done {done} epochs already; set --epochs above that")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file that `ResumableCheckpoint` has written.

    Raises:
        CallError: if there is no file at `path` or it only holds weights, and as `load_weights`.
    """
    if not path.is_file():
        raise CallError(f"{path}: nothing to resume. --resume takes the output_dir of an earlier run.{similar_path(path.parent)}")
    states = load_weights(path)
    if not isinstance(states.get("trainer"), dict):
        raise CallError(f"{path}: holds weights only, not the state of a training. Start anew with --pretrained {path}")
    return states
