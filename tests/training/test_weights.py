"""Files of weights that somebody made up."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops.errors import MlopsError
from mlops.training.weights import read_weights


class Room:
    """Asks the unpickler for memory: here for a few bytes, with the same call that would take all there is."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.kind, (10,))


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("name", ["pipe.pth", "pipe.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(MlopsError, match="x: is a device or a pipe, not a file; name a file"):
        read_weights(tmp_path / name, "x")


def test_a_mapping_that_holds_itself_is_not_unwrapped_for_ever(tmp_path: Path):
    cycle: dict[str, Any] = {}
    cycle["model"] = cycle
    torch.save(cycle, tmp_path / "x.pth")
    with pytest.raises(MlopsError, match="x: is no state dict"):
        read_weights(tmp_path / "x.pth", "x")


@pytest.mark.parametrize("kind", [bytearray, torch.FloatTensor, torch.UntypedStorage])
@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_asks_for_memory_in_numbers_is_not_unpickled(kind: Any, new: bool, tmp_path: Path):
    held = {"state_dict": {"w": torch.zeros(1)}, "room": Room(kind)}
    torch.save(held, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(MlopsError, match=rf"x: its pickle calls [\w.]+\.{kind.__name__}, which no weights need"):
        read_weights(tmp_path / "x.pth", "x")


@pytest.mark.parametrize("new", [True, False])
def test_what_trainers_save_beside_the_weights_is_no_hindrance(new: bool, tmp_path: Path):
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    parameters = dict(network.named_parameters())
    held = {"model": parameters, "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "epoch": 3}
    torch.save(held, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    assert read_weights(tmp_path / "x.pth", "x").tensors.keys() == {"weight", "bias"}
