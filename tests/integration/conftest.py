"""What the modules of tests about sweeps share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.sweeping import Started, starting


@pytest.fixture
def start(workplace: Path) -> Iterator[Callable[..., Started]]:
    """Start a command in the workplace: `start("sweep", "sweep.file=s.yaml")`; what still runs is killed at the end."""
    with starting(workplace) as begin:
        yield begin
