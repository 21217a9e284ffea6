"""`python -m mlops.preprocess`: images -> arrays that training reads. Also run by training when they are missing."""

from pathlib import Path

from mlops import entrypoint
from mlops.config import Config


def preprocess(config: Config, run: entrypoint.Run) -> None:  # noqa: ARG001 - every Hydra task is handed its run
    """Prepare the images that `config.data` names, and show what came of it."""
    from mlops.data.prepare import build_index, prepare
    from mlops.tables import show_prepared

    show_prepared(prepare(build_index(config.data), Path(config.paths.processed)))


def main() -> None:
    """The entrypoint."""
    # Its log belongs to the data; a run folder would hold nothing else.
    presets = ["hydra.run.dir=${paths.processed}", "hydra.output_subdir=null"]
    entrypoint.start(preprocess, "preprocess", presets=presets)


if __name__ == "__main__":
    main()
