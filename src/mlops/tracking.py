"""One small tracker: `metrics.jsonl` always, W&B beside it when asked."""

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlops.config import TrackingConfig
from mlops.errors import one_line

log = logging.getLogger(__name__)


class Tracker:
    """A context that takes the metrics of each epoch; a run that ends by an exception is marked as failed.

    Args:
        folder: the run's; `metrics.jsonl` (one object an epoch) and `wandb/` are written there.
        run_config: the resolved config, for W&B.
        fingerprint: of the data, an alias of the checkpoint's artifact.
    """

    def __init__(self, config: TrackingConfig, folder: Path, run_config: dict[str, Any], fingerprint: str) -> None:
        self._config = config
        self._folder = folder
        self._run_config = run_config
        self._fingerprint = fingerprint
        self._run: Any = None

    def __enter__(self) -> Self:
        if self._config.mode != "off":
            self._run = self._start_wandb()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is not None:
            code = (
                error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else int(error is not None)
            )
            self._run.finish(exit_code=code)

    def log_epoch(self, metrics: dict[str, float]) -> None:
        """Write the metrics of one epoch, once."""
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._run is not None:
            # One call an epoch: W&B's early stopping counts calls.
            self._run.log(metrics)

    def log_summary(self, metrics: dict[str, float]) -> None:
        """Metrics of the whole run, such as those on the test split."""
        if self._run is not None:
            self._run.summary.update(metrics)

    def log_checkpoint(self, path: Path) -> None:
        """Keep the checkpoint as an artifact of type `model`."""
        if self._run is None:
            return
        import wandb

        artifact = wandb.Artifact(f"best_model-{self._run.id}", type="model", metadata={"data": self._fingerprint})
        artifact.add_file(str(path))
        self._run.log_artifact(artifact, aliases=["best", self._fingerprint])

    def _start_wandb(self) -> Any:
        import wandb

        settings = wandb.Settings(
            # The code is in git and its state in the checkpoint; a diff may hold what nobody meant to send.
            disable_code=True,
            disable_git=True,
            save_code=False,
            console="off",
            quiet=True,
            silent=self._config.mode == "offline",
            init_timeout=30,
            finish_timeout=30,
        )
        try:
            run = wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                mode="offline" if self._config.mode == "offline" else "online",
                dir=str(self._folder),
                name=f"{self._folder.parent.name}/{self._folder.name}",
                config=self._run_config,
                settings=settings,
            )
            if self._config.mode == "offline":
                log.info(f"W&B run kept on disk; send it with: wandb sync {Path(run.dir).parent}")
            return run
        except (wandb.errors.Error, OSError) as error:
            log.warning(f"W&B cannot be reached, the run goes on without it: {one_line(error)}")
            return None
