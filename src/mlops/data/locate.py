"""Where the images of a run are: in their source, or, on a fresh clone, only in what was prepared from it."""

from pathlib import Path

from mlops.config import DataConfig
from mlops.data.prepare import Index, Prepared, build_index
from mlops.data.versioning.pointer import PREPARED, PREPARED_POINTER, find_root
from mlops.data.versioning.prepared import find_prepared, pull_prepared
from mlops.data.versioning.versions import one_at_a_time


def locate(config: DataConfig, processed: Path) -> Index | Prepared:
    """The images that `config` names, listed; where they are not here, what was prepared from this version of them.

    With `data.pull=auto`, prepared data that is versioned is fetched before the images are: it is smaller, and done.

    Raises:
        MlopsError: as `build_index` does; with `data.pull=auto`, as fetching does.
    """
    if config.root is None or Path(config.root).exists():
        return build_index(config)
    found, project = find_prepared(config, processed), find_root()
    if (
        found is None
        and config.pull == "auto"
        and project is not None
        and (project / PREPARED_POINTER).exists()
        and not (project / PREPARED).exists()
    ):
        with one_at_a_time(project):
            found = find_prepared(config, processed)
            if found is None:
                pull_prepared(project, processed)
        found = found or find_prepared(config, processed)
    return found or build_index(config)
