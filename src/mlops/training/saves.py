"""What a run keeps on disk while it trains: best_model.pth for the user, last.pth to go on from."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlops import checkpoint
from mlops.checkpoint import BEST, LAST, Checkpoint
from mlops.errors import MlopsError
from mlops.training.loop import REMEDY, DivergenceError, Metrics, Position, check_finite
from mlops.training.record import best_epoch, describe_epoch
from mlops.training.state import Bounds, capture, check, restore


class Saves:
    """The history of a run and its two files. Either is replaced whole; last.pth alone is enough to go on from.

    Args:
        story: what is known of the run before its first epoch (`record.describe_run`).
        model: the network that learns; `kept`: the one that is evaluated and kept.
        position: where the run is. It moves along as the run does.
        learning_rate: of an epoch and a step, to name where a loss is not finite.
        sweep: whether it is one of a sweep's many, which stays so when it goes on.
        after_save: called with each file once it is whole.
    """

    def __init__(
        self,
        folder: Path,
        story: Mapping[str, Any],
        *,
        monitor: str,
        steps_per_epoch: int,
        model: nn.Module,
        kept: nn.Module,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        learning_rate: Callable[[int, int], float],
        sweep: bool,
        after_save: Callable[[Path], None],
    ) -> None:
        self.folder = folder
        self.story = dict(story)
        self.history: list[Metrics] = []
        self.digests: list[str] = []
        self.position = Position()
        self.tracker_id: str | None = None
        self._monitor = monitor
        self._steps = steps_per_epoch
        self._model, self._kept = model, kept
        self._optimizer, self._scaler = optimizer, scaler
        self._learning_rate = learning_rate
        self._sweep = sweep
        self._after_save = after_save
        self._best: dict[str, Tensor] | None = None

    @property
    def best(self) -> Metrics:
        """The metrics of the best epoch so far."""
        return best_epoch(self.history, self._monitor)

    def restore(
        self, saved: Checkpoint, bounds: Bounds, build_optimizer: Callable[[list[nn.Parameter]], Optimizer]
    ) -> None:
        """Be where the run was that wrote this last.pth.

        Raises:
            MlopsError: it is none that a run like this one writes; with all that is wrong.
        """
        metadata = saved.metadata
        problems = check(
            saved.resume_tensors,
            metadata["resume"],
            saved.state_dict,
            len(metadata["history"]),
            bounds,
            model=self._model,
            kept=self._kept,
            build_optimizer=build_optimizer,
            scaler=self._scaler,
        )
        if problems:
            raise MlopsError([f"{self.folder / LAST}: resume: {problem}" for problem in problems])
        self.history = [dict(metrics) for metrics in metadata["history"]]
        self.digests = list(metadata["epoch_digests"])
        self.tracker_id = metadata["resume"]["tracker"]
        self.position, self._best = restore(
            saved.resume_tensors,
            metadata["resume"],
            saved.state_dict,
            model=self._model,
            kept=self._kept,
            optimizer=self._optimizer,
            scaler=self._scaler,
        )
        # A kill may have come between the two files, and the folder may be a copy without the other.
        if self._best is not None and not self._holds_best():
            self._save_best()

    def end_epoch(self, metrics: Metrics) -> bool:
        """Take the metrics of an epoch, and keep its weights if it is the best so far. Returns whether it is."""
        self.history.append(metrics)
        self.digests.append(self._digest())
        if best := self.best is metrics:
            self._best = copy.deepcopy({name: tensor.cpu() for name, tensor in self._kept.state_dict().items()})
            self._save_best()
        return best

    def save_last(self, *, finished: bool = False) -> None:
        """Write last.pth.

        Raises:
            DivergenceError: a loss or a weight is not finite; the last.pth of before is kept.
        """
        position = self.position
        if position.step:
            check_finite(position, self._learning_rate)
        self._check_weights()
        tensors, plain = capture(
            position,
            model=self._model,
            kept=self._kept,
            best=self._best,
            optimizer=self._optimizer,
            scaler=self._scaler,
        )
        now = describe_epoch(self.history[-1] if self.history else {}, self.history, self._steps)
        story = self.story | now | {"epoch_digests": self.digests}
        story["step"] = position.epoch * self._steps + position.step
        story["resume"] = plain | {"tracker": self.tracker_id, "sweep": self._sweep, "finished": finished}
        self._write(LAST, self._kept.state_dict(), story, tensors)

    def finish(self, metrics: Metrics, temperature: float) -> dict[str, Any]:
        """Write best_model.pth a last time, with what only the end of a run knows. Returns what it says."""
        self.story["temperature"] = temperature
        return self._save_best(metrics)

    def _save_best(self, metrics: Metrics | None = None) -> dict[str, Any]:
        now = describe_epoch(metrics or self.best, self.history, self._steps)
        story = self.story | now | {"epoch_digests": self.digests}
        self._write(BEST, self._best or {}, story)
        return story

    def _write(
        self, name: str, weights: Mapping[str, Tensor], story: Mapping[str, Any], tensors: Mapping[str, Tensor] = {}
    ) -> None:
        checkpoint.save(self.folder / name, weights, story, tensors)
        self._after_save(self.folder / name)

    def _holds_best(self) -> bool:
        try:
            found = checkpoint.read(self.folder / BEST)
        except MlopsError:
            return False
        best = self._best or {}
        return (
            found.metadata["epoch"] == self.best["epoch"]
            and found.state_dict.keys() == best.keys()
            and all(torch.equal(tensor, best[name]) for name, tensor in found.state_dict.items())
        )

    def _digest(self) -> str:
        """SHA-256 of all weights that the run has now."""
        total = hashlib.sha256()
        checkpoint.add_tensors(total, _on_cpu(self._model))
        if self._kept is not self._model:
            checkpoint.add_tensors(total, _on_cpu(self._kept), "kept ")
        return total.hexdigest()

    def _check_weights(self) -> None:
        for name, tensor in self._model.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                epoch, step = self.position.epoch, self.position.step
                raise DivergenceError(
                    f"epoch {epoch + 1}, after step {step}: weights of {name} are not finite at a learning rate of "
                    f"{self._learning_rate(epoch, max(step - 1, 0)):.3g}; {REMEDY}"
                )


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
