"""`python -m mlops.preprocess`: images -> arrays that training reads. Also run by training when they are missing.

Imports wait until they are needed: the processes that decode images import this module when they start.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mlops.config import Config

if TYPE_CHECKING:
    from mlops.entrypoint import Run


def preprocess(config: Config, run: "Run") -> None:  # noqa: ARG001 - every Hydra task is handed its run
    """Prepare the images that `config.data` names, and show what came of it."""
    from mlops.data.prepare import build_index, prepare
    from mlops.tables import show_prepared

    show_prepared(prepare(build_index(config.data), Path(config.paths.processed)))


def main() -> None:
    """The entrypoint."""
    from mlops import entrypoint

    # Its log belongs to the data; a run folder would hold nothing else.
    presets = ["hydra.run.dir=${paths.processed}", "hydra.output_subdir=null", "hydra.help.app_name=mlops.preprocess"]
    entrypoint.start(preprocess, "preprocess", presets=presets)


if __name__ == "__main__":
    main()
