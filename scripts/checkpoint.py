"""Everything a training run needs to go on after an interruption, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from scripts.errors import UserError
from scripts.files import write_whole


class OnCpu:
    """A network as it is to be saved: tensors on the CPU, so that the file loads anywhere, and names without `module.` of DDP.

    Args:
        module: the network.
        dtype: of the floating point tensors in the file; None keeps theirs.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype | None = None) -> None:
        self.module = getattr(module, "module", module)
        self.dtype = dtype

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {name: tensor.cpu() for name, tensor in self.module.state_dict().items()}
        return {name: t.to(self.dtype) if self.dtype and t.is_floating_point() else t for name, t in state.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.module.load_state_dict(state)


class PretrainedWeights:
    """Start a training from the weights of another one.

    A layer whose size differs, as the head does for another label table, keeps its random weights, and a line says so.

    Args:
        path: a state_dict.
        network: what gets it.
    """

    def __init__(self, path: str, network: torch.nn.Module) -> None:
        self.path = path
        self.network = getattr(network, "module", network)  # without DistributedDataParallel

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)

    def load(self, engine: Engine) -> None:
        """
        Raises:
            UserError: if the layers of the file have other names, or most have other sizes: weights of another network.
        """
        state, own = torch.load(self.path, map_location="cpu", weights_only=True), self.network.state_dict()
        fitting = {name: t for name, t in state.items() if name in own and own[name].shape == t.shape}
        if state.keys() != own.keys() or 2 * len(fitting) < len(own):
            raise UserError(f"{self.path}: weights of another network, {len(fitting)} of {len(own)} layers fit; give its --network_def")
        self.network.load_state_dict(fitting, strict=False)
        for name in sorted(own.keys() - fitting.keys()):
            sizes = f"{tuple(state[name].shape)} there, {tuple(own[name].shape)} here"
            engine.logger.warning(f"{self.path}: {name} is not taken over, it starts at random ({sizes})")


class ResumableCheckpoint:
    """Write `last.pt` after every epoch; with `resume`, start from it.

    MONAI's `CheckpointSaver` cannot hold the trainer itself (a circular reference in the config) and numbers its files; this handler
    has the trainer at hand when it is attached. The file is replaced as a whole. It holds plain tensors and numbers only, so that it
    loads with `weights_only=True`.

    Args:
        path: the file.
        save_dict: named objects with `state_dict` and `load_state_dict`: network, optimizer, schedule.
        best_saver: the `CheckpointSaver` of the best model; its best score is kept, so that a resumed run cannot replace a better model.
        resume: load the file before the first epoch.
    """

    def __init__(self, path: str, save_dict: Mapping[str, Any], best_saver: Any = None, resume: bool = False) -> None:
        self.path = Path(path)
        self.save_dict = dict(save_dict)
        self.best_saver = best_saver
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def _objects(self, engine: Engine) -> dict[str, Any]:
        objects = {"trainer": engine, **self.save_dict}
        if self.best_saver is not None:
            objects["best"] = self.best_saver._key_metric_checkpoint
        return {name: OnCpu(o) if isinstance(o, torch.nn.Module) else o for name, o in objects.items()}

    def save(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            states = {name: o.state_dict() for name, o in self._objects(engine).items()}
            write_whole(self.path, lambda partial: torch.save(states, partial))

    def load(self, engine: Engine) -> None:
        """
        Raises:
            UserError: if the file is missing or its run is over.
        """
        if not self.path.is_file():
            raise UserError(f"{self.path}: nothing to resume. --resume takes the output_dir of an earlier run.")
        epochs = engine.state.max_epochs
        states = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, o in self._objects(engine).items():
            o.load_state_dict(states[name])
        if engine.state.epoch >= epochs:
            raise UserError(f"{self.path}: its run has done {engine.state.epoch} epochs already; set --epochs above that")
        engine.state.max_epochs = epochs
