import pytest
import torch

from mlops.config import ScheduleConfig
from mlops.training.schedule import build_schedule


def rates(name: str, steps: int = 100, warmup: float | None = None) -> list[float]:
    schedule = build_schedule(ScheduleConfig(name, warmup), steps)
    return [schedule(step) for step in range(steps)]


def test_one_cycle_is_torchs_one_cycle():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1000, pct_start=0.3)
    expected = []
    for _ in range(1000):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates("one_cycle", 1000) == pytest.approx(expected, abs=0.01)


def test_cosine_rises_in_a_line_and_falls_to_nearly_zero():
    found = rates("cosine", warmup=0.1)
    assert found[4] == pytest.approx(5 / 11)
    assert max(found) == found[10] == 1.0
    assert found[55] == pytest.approx(0.5)
    assert found[-1] < 0.001
    assert found[10:] == sorted(found[10:], reverse=True)


def test_constant_stays_from_the_first_step():
    assert set(rates("constant")) == {1.0}
    assert rates("constant", warmup=0.5)[0] < 0.05


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "constant"])
def test_a_run_of_one_step_has_a_learning_rate(name: str):
    assert 0 < rates(name, 1)[0] <= 1
