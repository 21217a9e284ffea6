"""Composing by what is kept gives what Hydra gives."""

import hydra
import pytest
from omegaconf import OmegaConf

from mlops.config import config_folder
from mlops.entrypoint import composer, normalise, register
from mlops.errors import one_line

FOLDERS = [config_folder()]


def by_hydra(overrides: list[str]) -> object:
    """All of it anew."""
    register()
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            return OmegaConf.to_container(hydra.compose("config", overrides=overrides), resolve=True)
    except Exception as error:
        return one_line(error.__cause__ or error)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.epochs=3"],
        ["model=tinycnn", "model.width=8"],
        ["model.width=8", "model=tinycnn"],
        ["training.epochs=4", "training={epochs: 5}"],
        ["training={epochs: 5}", "training.epochs=4"],
        ["training.optimizer={_target_: torch.optim.SGD, lr: 0.1}", "training.optimizer.lr=0.2"],
        ["experiment=gtsrb", "training.epochs=2", "data.root=/x"],
        ["training.epochs=2", "debug=smoke"],
        ["training.epochs=2", "debug=smoke", "training.limit_batches=7"],
        ["+new=1", "training.epochs=2"],
        ["~training.monitor", "training.epochs=2"],
        ["seed=${training.epochs}", "training.epochs=9"],
        ["training.patience=null", "augment.flip=0.5"],
        ["data.name=null", "data.name='a b'"],
        ["++model=resnet18"],
        ["training.epochs.deep=1"],
        ["model=none_such"],
    ],
)
def test_keys_set_afterwards_give_what_hydra_composes_of_all_at_once(overrides: list[str]):
    compose = composer("config", FOLDERS)
    compose(["seed=5"])  # what is kept of before changes nothing
    said = [normalise(text, FOLDERS) for text in overrides]
    first, again = compose(said), compose(said)
    assert first == again
    wanted = by_hydra(said)
    assert isinstance(first, dict) == isinstance(wanted, dict)
    if isinstance(wanted, dict):
        assert first == wanted


def test_files_are_read_once(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []
    real = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda name, overrides: asked.append(overrides) or real(name, overrides))
    compose = composer("config", FOLDERS)
    for epochs in (1, 2, 3):
        found = compose(["model=tinycnn", f"++training.epochs={epochs}"])
        assert isinstance(found, dict)
        assert (found["training"]["epochs"], found["model"]["_target_"]) == (epochs, "mlops.models.TinyCNN")
    assert asked == [["model=tinycnn"]]
