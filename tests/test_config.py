import copy
import math
from typing import Any

import pytest

from mlops.config import Config, check, check_targets, complete, defaults, load, settings, shown
from mlops.errors import MlopsError
from mlops.targets import MODELS, OPTIMIZERS


def raw(**changes: Any) -> dict[str, Any]:
    """The defaults with some keys changed, written as `training__epochs=3`."""
    values = copy.deepcopy(defaults())
    for name, value in changes.items():
        *folders, leaf = name.split("__")
        node = values
        for folder in folders:
            node = node[folder]
        node[leaf] = value
    return values


def test_the_defaults_are_a_valid_config():
    assert load(defaults()) == Config()


def test_whole_numbers_where_numbers_are_asked_for_become_floats():
    config = load(raw(augment__rotate=10))
    assert isinstance(config.augment.rotate, float)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sed": 1}, "sed=1: no such key; did you mean seed?"),
        ({"training__lr": 1}, "training.lr=1: no such key; did you mean training.optimizer.lr?"),
        ({"training__batchsize": 1}, "training.batchsize=1: no such key; did you mean training.batch_size?"),
        ({"data__split__tests": 1}, "data.split.tests=1: no such key; did you mean data.split.test?"),
        ({"training__epochs": 0}, "training.epochs=0: must be at least 1"),
        ({"training__epochs": 1.5}, "training.epochs=1.5: must be a whole number"),
        ({"training__epochs": True}, "training.epochs=true: must be a whole number"),
        ({"training__epochs": None}, "training.epochs=null: must be a whole number"),
        ({"data__split__val": 0.0}, "data.split.val=0.0: must be above 0"),
        ({"data__split__val": math.nan}, "data.split.val=nan: must be above 0"),
        ({"data__max_bad": 1.1}, "data.max_bad=1.1: must be at most 1"),
        ({"training__monitor": "accuracy"}, "training.monitor=accuracy: must be one of val_Accuracy,"),
        ({"training": 3}, "training=3: must be a group of keys"),
        ({"data__split__val": 0.5, "data__split__test": 0.5}, "together must leave images to train on"),
        ({"data__source": "gtsrb"}, "data.root=null: data.source=gtsrb needs a folder, .tar or .zip"),
        ({"data__group": "("}, "data.group=(: is not a regular expression"),
        ({"data__name": "../x"}, "data.name=../x: must be letters, digits"),
        ({"data__source": "csv"}, "data.root=null: data.source=csv needs a folder, .tar or .zip"),
        ({"data__source": "torchvision"}, "data.dataset=null: data.source=torchvision needs one of CIFAR10, CIFAR100"),
        (
            {"data__dataset": "cifar-10"},
            "data.dataset=cifar-10: no such data set; did you mean CIFAR10? Choices: CIFAR10",
        ),
        ({"data__dataset": "os.system"}, "data.dataset=os.system: no such data set; Choices: CIFAR10"),
        ({"data__roi": True}, "data.roi=true: data.source=digits has no boxes; only gtsrb and csv have"),
        ({"data__classes": ["a", "b"]}, "data.classes=['a', 'b']: data.source=digits takes its classes from its files"),
        ({"data__classes": ["a"]}, "data.classes=['a']: must be two or more names, each once"),
        ({"data__classes": ["a", "b", "a"]}, "must be two or more names, each once"),
        ({"data__classes": ["a", " "]}, "must be two or more names, each once"),
        ({"data__classes": "a,b"}, "data.classes=a,b: must be a list, each item text or null"),
        ({"data__duplicates": "keep"}, "data.duplicates=keep: must be one of refuse, drop"),
        ({"training__device": "gpu"}, "training.device=gpu: must be auto, cpu, cuda"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_remedy(changes: dict[str, Any], problem: str):
    found = check(raw(**changes))
    assert any(problem in line for line in found), found
    assert all("\n" not in line for line in found)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(MlopsError) as caught:
        load(raw(sed=1, training__epochs=0, data__filter="best", training__batch_size="many"))
    assert len(caught.value.problems) == 4


def test_a_missing_key_is_named():
    values = defaults()
    del values["data"]["source"]
    assert check(values) == ["data.source: is missing"]


def test_targets_are_checked_against_the_signatures_they_name():
    values = raw(
        model={"_target_": "mlops.models.SignNet", "widht": 3},
        training__optimizer={"_target_": "torch.optim.SGD", "lr": "abc"},
    )
    assert check_targets(values, MODELS | OPTIMIZERS) == [
        "model.widht=3: mlops.models.SignNet takes no such parameter; did you mean model.width?",
        "training.optimizer.lr=abc: must be a number",
    ]


def test_every_setting_has_a_line_of_help():
    for setting in settings():
        assert len(setting.help) > 5, setting.name


def test_values_are_shown_as_a_user_would_write_them():
    assert [shown(value) for value in (None, True, 1, "a")] == ["null", "true", "1", "a"]
    assert len(shown("x" * 1000)) == 60


def test_a_config_of_an_earlier_version_gets_the_defaults_of_what_came_later():
    old = raw(training__epochs=7)
    del old["data"]["split"]["seed"], old["training"]["ema"], old["promote"]
    assert load(complete(old)) == load(raw(training__epochs=7))
    assert check(complete({"sed": 1})) == ["sed=1: no such key; did you mean seed?"]
