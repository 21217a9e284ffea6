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
    from mlops.data.locate import locate
    from mlops.data.prepare import Index, prepare
    from mlops.tables import show_prepared

    processed = Path(config.paths.processed)
    found = locate(config.data, processed)
    show_prepared(prepare(found, processed) if isinstance(found, Index) else found)


def main() -> None:
    """The entrypoint."""
    from mlops import entrypoint

    # Its log belongs to the data; a run folder would hold nothing else.
    presets = ["hydra.run.dir=${paths.processed}", "hydra.output_subdir=null", "hydra.help.app_name=mlops.preprocess"]
    entrypoint.start(preprocess, "preprocess", presets=presets)


if __name__ == "__main__":
    main()
