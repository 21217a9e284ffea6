import copy

import torch
from torch import nn

from mlops.training.average import follow


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_without_a_decay_the_network_itself_is_kept():
    model = network()
    kept, after_update = follow(model, 0.0)
    after_update(0)
    assert kept is model


def test_the_average_is_the_one_computed_by_hand():
    model = network()
    kept, after_update = follow(model, 0.5)
    weight, mean, seen = model[0].weight, model[1].running_mean, model[1].num_batches_tracked
    expected_weight, expected_mean = None, None
    for step in range(6):
        with torch.no_grad():
            weight.fill_(float(step))
            mean.fill_(float(-step))
            seen.fill_(step)
        after_update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        if expected_weight is None:
            expected_weight, expected_mean = float(step), float(-step)
        else:
            expected_weight = decay * expected_weight + (1 - decay) * step
            expected_mean = decay * expected_mean - (1 - decay) * step
    torch.testing.assert_close(kept[0].weight, torch.full((2, 3), expected_weight))
    torch.testing.assert_close(kept[1].running_mean, torch.full((2,), expected_mean))
    assert int(kept[1].num_batches_tracked) == 5


def test_the_average_has_the_names_of_the_network_and_leaves_it_alone():
    model = network()
    before = copy.deepcopy(model.state_dict())
    kept, after_update = follow(model, 0.9)
    after_update(0)
    after_update(1)
    assert list(kept.state_dict()) == list(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
