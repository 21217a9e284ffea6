"""The versions stand in two places; they must say the same."""

import itertools
import re
import tomllib

import pytest

from samples import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = set(PYPROJECT["tool"]["uv"]["constraint-dependencies"])


def lines(name: str) -> list[str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return [line.removesuffix(" \\") for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]


@pytest.mark.parametrize("name", ["train", "serve", "dev"])
def test_requirements_and_pins_agree(name: str):
    packages = lines(name)
    # An export for one group may need fewer conditions on a package than all groups together; the version is the same.
    versions = {pin.split(" ;")[0] for pin in PINS}
    assert packages
    assert {line.split(" ;")[0] for line in packages} <= versions


@pytest.mark.parametrize("name", ["train", "serve", "dev"])
def test_every_requirement_has_hashes_and_no_address(name: str):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    for block in re.split(r"\n(?=[A-Za-z0-9])", text)[1:]:
        assert "--hash=sha256:" in block, block


def test_every_direct_dependency_is_pinned():
    groups = PYPROJECT["dependency-groups"]
    extras = PYPROJECT["project"]["optional-dependencies"]
    direct = [*PYPROJECT["project"]["dependencies"], *itertools.chain(*groups.values(), *extras.values())]
    pinned = {re.split(r"[=<> ;]", pin)[0] for pin in PINS} | {"mlops"}
    assert {re.split(r"[\[=<> ;]", spec)[0] for spec in direct} <= pinned


def test_the_serving_set_has_no_torch():
    assert not [line for line in lines("serve") if re.match(r"torch|nvidia|triton|wandb", line)]


@pytest.mark.parametrize(
    ("package", "floor"),
    [
        ("hydra-core", (1, 3, 7)),
        ("torch", (2, 11)),
        ("pillow", (13, 0)),
        ("starlette", (1, 3, 1)),
        ("python-multipart", (0, 0, 31)),
    ],
)
def test_no_pin_lies_below_a_floor_for_a_known_hole(package: str, floor: tuple[int, ...]):
    (version,) = {pin.split("==")[1].split(" ;")[0] for pin in PINS if pin.startswith(f"{package}==")}
    assert tuple(int(part) for part in version.split(".")) >= floor
