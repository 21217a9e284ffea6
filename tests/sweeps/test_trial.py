"""A trial in a worker: what it tells of its epochs, how it ends, and how it goes on after a stop."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlops import targets
from mlops.config import config_folder
from mlops.sweeps.pool import Began, Ended, Epoch, Job
from mlops.trial import TrialTrainer
from samples import ON_CPU

OVERRIDES = (
    *("model.width=8", "training.limit_batches=2", "training.epochs=4", "training.threads=1", "tracking=off"),
    *ON_CPU,
)
FOLDER = Path("outputs/2000-01-01/00-00-00-0000-0")


def train(*overrides: str, answer: Callable[[Epoch], bool] = lambda _: False) -> tuple[Ended, list[Began | Epoch]]:
    """Run a trial, or go on with it. Returns its end, and what it has said before."""
    allowed, said = targets.read_allowed(config_folder()), list[Began | Epoch]()
    trainer = TrialTrainer((config_folder(),), (), allowed, "val_Accuracy", "s", tracked=False)

    def ask(epoch: Epoch) -> bool:
        said.append(epoch)
        return answer(epoch)

    return trainer.train(Job(0, (*OVERRIDES, *overrides), FOLDER), said.append, ask), said


def epochs_written() -> int:
    return len((FOLDER / "metrics.jsonl").read_text().splitlines())


def stop_at(epoch: int) -> Callable[[Epoch], bool]:
    """As SIGTERM does that arrives before the answer."""

    def stops(said: Epoch) -> bool:
        if max(said.steps) == epoch:
            raise SystemExit(143)
        return False

    return stops


@pytest.mark.slow
def test_a_trial_that_was_stopped_before_the_answer_to_its_epoch_asks_again_before_it_trains_on(workplace: Path):
    with pytest.raises(SystemExit):
        train(answer=stop_at(2))
    ended, (began, *asked) = train(answer=lambda _: True)
    assert began == Began(4, done=2)
    assert [list(epoch.steps) for epoch in asked if isinstance(epoch, Epoch)] == [[1, 2]]
    assert (ended.stopped, ended.epochs, epochs_written()) == (True, 2, 2)
    assert ended.metrics["val_Accuracy"] == asked[0].steps[2]


@pytest.mark.slow
def test_a_trial_that_goes_on_tells_of_all_its_epochs_with_the_best_value_so_far_at_each(workplace: Path):
    with pytest.raises(SystemExit):
        train(answer=stop_at(2))
    ended, said = train()
    asked = [epoch for epoch in said if isinstance(epoch, Epoch)]
    assert [list(epoch.steps) for epoch in asked] == [[1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert [epoch.last for epoch in asked] == [False, False, True]
    values = list(asked[-1].steps.values())
    assert values == sorted(values)
    assert (ended.stopped, ended.epochs, ended.metrics["val_Accuracy"]) == (False, 4, values[-1])
    # Started once more, it has a result that no word about stopping takes away.
    ended, (_, again) = train()
    assert (again, ended.epochs) == (asked[-1], 4)


def test_settings_that_no_optimizer_can_be_built_with_fail_the_trial_and_not_its_worker(workplace: Path):
    ended, _ = train("training.optimizer.lr=-1.0")
    assert "training.optimizer: torch.optim.AdamW cannot be built: Invalid learning rate" in ended.failure
    assert not ended.crashed
