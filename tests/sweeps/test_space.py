from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from mlops.sweeps.parameters import Choice, Fixed, Integers, Parameter, Range, Steps
from mlops.sweeps.space import EarlyStop, Method, Space


def space(parameters: dict[str, Parameter], method: Method = "grid", **more: Any) -> Space:
    told = {"target": None, "early_stop": None, "run_cap": None, "agents": False} | more
    return Space(Path("sweep.yaml"), method, "val_Accuracy", True, parameters=parameters, **told)


def test_in_a_grid_the_last_name_in_the_alphabet_moves_fastest_and_the_values_keep_their_order():
    grid = space({"c": Choice(("x", None)), "a": Integers(1, 2), "b": Fixed(7)})
    assert grid.grid_size == 4
    assert [grid.grid_point(number) for number in range(4)] == [
        {"c": "x", "a": 1},
        {"c": None, "a": 1},
        {"c": "x", "a": 2},
        {"c": None, "a": 2},
    ]
    assert list(grid.grid_point(0)) == ["c", "a"]


def test_every_point_of_a_grid_comes_once():
    grid = space({"a": Choice((1, True, "1")), "b": Steps(0.0, 1.0, 0.25), "c": Integers(-2, 2)})
    points = [repr(grid.grid_point(number)) for number in range(grid.grid_size)]
    assert len(points) == len(set(points)) == 3 * 4 * 5


@pytest.mark.parametrize(
    ("steps", "points"),
    [
        (Steps(16, 64, 16), [16, 32, 48]),
        (Steps(0.0, 0.3, 0.1), [0.0, 0.1, 0.2]),
        (Steps(0.0, 1.0, 0.4), [0.0, 0.4, 0.8]),
        (Steps(0.1, 0.2, 0.5), [0.1]),
        (Steps(1, 4, 1), [1, 2, 3]),
    ],
)
def test_the_grid_of_rounded_numbers_begins_at_min_and_ends_before_max_as_wandbs_does(
    steps: Steps, points: list[float]
):
    assert [steps.grid(position) for position in range(steps.points)] == points
    assert list(map(type, map(steps.grid, range(steps.points)))) == list(map(type, points))


@pytest.mark.parametrize(
    ("steps", "number", "value"),
    [
        (Steps(16, 64, 16), 23.9, 16),
        (Steps(16, 64, 16), 24.1, 32),
        (Steps(0.0, 1.0, 0.1), 0.29, 0.3),
        (Steps(0.0, 1.0, 0.1), 0.0499, 0.0),
        (Steps(16.0, 64.0, 1), 20.4, 20),
        (Steps(0.1, 0.9, 0.25), 0.89, 1.0),
    ],
)
def test_a_rounded_number_is_a_multiple_without_dust_and_an_integer_where_the_step_is_one(
    steps: Steps, number: float, value: float
):
    assert repr(steps.at(number)) == repr(value)


@pytest.mark.parametrize(("share", "value"), [(0.0, "b"), (0.249, "b"), (0.25, "c"), (0.999, "c"), (1.0, "c")])
def test_a_weighted_choice_takes_its_share_and_never_what_has_none(share: float, value: str):
    assert Choice(("a", "b", "c", "d"), (0, 0.25, 0.75, 0)).at(share) == value


def test_an_even_choice_parts_the_shares_evenly():
    assert [Choice(("a", "b", "c")).at(share) for share in (0, 0.3, 0.34, 0.6, 0.67, 1)] == [
        "a",
        "a",
        "b",
        "b",
        "c",
        "c",
    ]


def test_the_extremes_have_every_value_and_every_bound():
    searched = space(
        {
            "a": Choice((1, 2, 3)),
            "b": Range(0.1, 0.9),
            "c": Fixed("x"),
            "d": Integers(1, 9),
            "e": Steps(0.1, 0.9, 0.25),
            "f": Choice(("u", "v", "w"), (0.5, 0, 0.5)),
        },
        "random",
    )
    first = {"a": 1, "b": 0.1, "c": "x", "d": 1, "e": 0.0, "f": "u"}
    others = ({"a": 2}, {"a": 3}, {"b": 0.9}, {"d": 9}, {"e": 1.0}, {"f": "w"})
    assert list(searched.extremes()) == [first, *(first | other for other in others)]


def test_overrides_are_of_all_parameters_in_the_order_of_the_file():
    searched = space({"b": Choice(("x y", None)), "a": Fixed("null"), "c": Range(0, 1)}, "random")
    assert list(searched.searched) == ["b", "c"]
    assert searched.overrides({"c": 1e-05, "b": "x y"}) == ["b=x y", "a='null'", "c=1e-05"]
    assert searched.overrides({"a": 3, "b": None, "c": 0.5}) == ["b=null", "a=3", "c=0.5"]
    with pytest.raises(MlopsError, match="c=nan: no override can say that"):
        searched.overrides({"b": None, "c": float("nan")})


def test_trials_of_two_files_compare_where_the_search_is_the_same():
    parameters: dict[str, Parameter] = {"a": Choice((1, 2)), "b": Range(0.1, 0.9)}
    one = space(parameters, early_stop=EarlyStop(1, 3))
    same = space(dict(reversed(parameters.items())), early_stop=EarlyStop(1, 3), run_cap=9, target=0.9, agents=True)
    assert one.identity() == same.identity()
    others = (
        space(parameters),
        space(parameters, early_stop=EarlyStop(1, 3, 2)),
        space(parameters, "random", early_stop=EarlyStop(1, 3)),
        space(parameters | {"b": Range(0.1, 0.9, log=True)}, early_stop=EarlyStop(1, 3)),
        space(parameters | {"a": Choice((1, 2.0))}, early_stop=EarlyStop(1, 3)),
        space(parameters | {"a": Choice((1, True))}, early_stop=EarlyStop(1, 3)),
        space(parameters | {"c": Fixed(1)}, early_stop=EarlyStop(1, 3)),
    )
    assert [one.identity() == other.identity() for other in others] == [False] * len(others)
