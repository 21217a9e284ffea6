"""What builds and runs images takes minutes, root and Debian's buildah: only `invoke test --containers` does it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from containers import engine
from containers.planted import PLANTED, SECRET
from samples import ROOT

MARKER = "containers"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}: builds or runs an image; `invoke test --containers` runs these")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if MARKER in config.option.markexpr:
        return
    gone = [item for item in items if item.get_closest_marker(MARKER)]
    config.hook.pytest_deselected(items=gone)
    items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as somebody has it: all that git knows or might, and keys lying around."""
    if reason := engine.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("context")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{SECRET}\n")
    return folder


@pytest.fixture(scope="session")
def api_image(context: Path) -> str:
    """The service, installed and built in no more memory than the smallest cloud machine has."""
    return engine.build(context, "api", memory=engine.GIGABYTE)


@pytest.fixture(scope="session")
def train_image(context: Path) -> str:
    """The training. Building it takes some 25 GB, of which its layers, 13 GB, stay in the store for the next time."""
    built = engine.is_built("train")
    free, needed = shutil.disk_usage(engine.STORE).free, 25 * engine.GIGABYTE
    if free < needed and not built:
        pytest.skip(f"{engine.STORE}: {free / 1e9:.0f} GB are free, and building it takes {needed / 1e9:.0f}")
    return engine.build(context, "train")


@pytest.fixture
def writable(tmp_path: Path) -> Path:
    """A folder that the user of the images may write to."""
    folder = tmp_path / "volume"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    return folder
