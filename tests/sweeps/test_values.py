import math
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from mlops.config import config_folder
from mlops.entrypoint import composer, normalise
from mlops.errors import MlopsError
from mlops.sweeps.values import same, to_agent, to_override

# What means something to a shell, to YAML, to Hydra or to OmegaConf.
MARKS = "ab1.eE-+_'\"\\ ,=:;{}[]()$~#%@!?&*|<>/\t\n\u00e9\u4e2d\U0001f600"
WORDS = ["null", "None", "true", "False", "1", "1e-5", "inf", "nan", "???", "${seed}", "a=b", "x,y", "", " ", "it's"]
TEXTS = st.text(max_size=10) | st.text(MARKS, max_size=12) | st.sampled_from(WORDS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
KEYS = st.from_regex(r"[a-z_]{1,6}", fullmatch=True).map(lambda key: f"k{key}")
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


def cannot_be_said(value: Any) -> bool:
    """NaN, which equals nothing; a backslash before an interpolation, which Hydra takes for its escape; ???, which says
    to it that a value is missing.
    """
    if isinstance(value, list):
        return any(map(cannot_be_said, value))
    if isinstance(value, dict):
        return any(map(cannot_be_said, value.values()))
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and ("\\${" in value or value == "???")


def composed(values: list[Any]) -> list[Any] | str:
    """What a trial is given: the values of `model.v0`, `model.v1`, ... as Hydra composes them with our menu."""
    folders = [config_folder()]
    words = [to_override(f"model.v{number}", value) for number, value in enumerate(values)]
    found = composer("config", folders)([normalise(word, folders) for word in words])
    return found if isinstance(found, str) else [found["model"][f"v{number}"] for number in range(len(values))]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(VALUES.filter(lambda value: not cannot_be_said(value)), min_size=5, max_size=15))
def test_a_trial_is_given_the_very_value_of_the_file(values: list[Any]):
    found = composed(values)
    assert isinstance(found, list), found
    assert [(value, back) for value, back in zip(values, found, strict=True) if not same(value, back)] == []


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES)
@example("${seed}")
@example("\\")
@example("\\'")
@example("a\\${seed}")
@example([["\\${"]])
@example({"k": math.nan})
@example("???")
@example(["????", "???"])
def test_only_nan_an_escaped_interpolation_and_the_mark_of_a_missing_value_are_refused(value: Any):
    if cannot_be_said(value):
        with pytest.raises(MlopsError, match=r"^model.v=.*: no override can say that; use null, a number, text, or a"):
            to_override("model.v", value)
    else:
        assert to_override("model.v", value).startswith("model.v=")


def test_the_road_of_a_trial_carries_what_people_write():
    values = [
        *(None, True, False, 0, -3, 10**30, 0.0, -0.0, 1.0, 1e-5, 1e300, -2.5e-308, math.inf, -math.inf),
        *("", " ", "null", "None", "true", "1", "1.0", "1e-5", "inf", "nan", "a b", " a", "a ", "a=b", "x,y", "a: b"),
        *(
            "it's",
            'say "no"',
            "\\",
            "a\\",
            "\\'",
            "'\\",
            "line\nbreak",
            "tab\t",
            "${seed}",
            "a${b",
            "$",
            "[1]",
            "{a:1}",
        ),
        *("\u00e9t\u00e9 \u4e2d\u6587 \U0001f600", "~", "#", "glob(*)", "choice(1,2)", "????"),
        *([], [1, 1.0, True, None, "1"], [["a b"], {"k": "x,y"}], {}, {"k": None, "l": {"m": [1e-5, "${seed}"]}}),
    ]
    found = composed(values)
    assert isinstance(found, list), found
    assert list(map(repr, found)) == list(map(repr, values))


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "k=null"),
        (True, "k=true"),
        (64, "k=64"),
        (1e-05, "k=1e-05"),
        (-0.0, "k=-0.0"),
        ("a b", "k=a b"),
        ("null", "k='null'"),
        ("it's", "k='it\\'s'"),
        ("${seed}", "k='\\${seed}'"),
        ([1, "a b", None], "k=[1,a b,null]"),
        ({"a": [True]}, "k={a:[true]}"),
    ],
)
def test_an_override_is_what_a_person_would_write(value: Any, word: str):
    assert to_override("k", value) == word


@pytest.mark.parametrize("value", [{"": 1}, {"1": 1}, {"null": 1}, {"a,b": 1}, {None: 1}, {1, 2}, b"x", object()])
def test_what_has_no_words_is_refused_with_its_name_and_what_to_use(value: Any):
    with pytest.raises(
        MlopsError, match=r"^k=.*: no override can say that; use null, a number, text, or a list or map"
    ):
        to_override("k", value)


def test_a_letter_that_no_file_can_hold_is_refused():
    with pytest.raises(MlopsError, match="no override can say that"):
        to_override("k", "\ud800")


@pytest.mark.parametrize(
    "value",
    [True, False, 0, -7, 10**20, 0.5, -0.0, 1e-05, 1e22, "adam", "a b", "", "a.b-c_d/e", [1, 2.5, True]],
)
def test_words_of_the_agent_that_say_the_value_are_taken_as_they_are(value: Any):
    (word,) = create_sweep_command_args({"args": {"model.v": {"value": value}}})["args_no_hyphens"]
    assert to_agent("model.v", value) == word
    found = composer("config", [config_folder()])([f"++{word}"])
    assert isinstance(found, dict), found
    assert same(found["model"]["v"], value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES)
def test_what_passes_for_the_agent_is_what_the_agent_writes(value: Any):
    (word,) = create_sweep_command_args({"args": {"model.v": {"value": value}}})["args_no_hyphens"]
    try:
        passed = to_agent("model.v", value)
    except MlopsError:
        # Refused where only quotes would say it, and where nothing would.
        assert value is None or isinstance(value, str | list | dict) or cannot_be_said(value)
    else:
        assert passed == word


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null as the text None"),
        ("null", "null with nothing in quotes"),
        ("true", "true with nothing in quotes"),
        ("1", "1 with nothing in quotes"),
        ("1e-5", "1e-5 with nothing in quotes"),
        (" a", " a with nothing in quotes"),
        ("a ", "a  with nothing in quotes"),
        ("it's", "it's with nothing in quotes"),
        ("'a'", "'a' with nothing in quotes"),
        ("a,b", "a,b with nothing in quotes"),
        ("a=b", "a=b with nothing in quotes"),
        ("\u00e9", "\u00e9 with nothing in quotes"),
        ("[1", "[1 with nothing in quotes"),
        ("${seed}", "${seed} with nothing in quotes"),
        ([None], "[None] with nothing in quotes"),
        ({"a": 1}, "{'a': 1} with nothing in quotes"),
        ([{"a": 1}], "[{'a': 1}] with nothing in quotes"),
    ],
)
def test_what_the_agent_would_change_is_refused_with_the_words_it_writes(value: Any, written: str):
    with pytest.raises(MlopsError) as caught:
        to_agent("model.v", value)
    (problem,) = caught.value.problems
    assert f"W&B's agent writes {written}, so the trial would get another value" in problem
    assert "leave out `command`: a file without it is for this machine alone" in problem


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0), ("1", 1), ([1], [1.0]), ({"a": 1}, {"a": True}), (None, "")]
)
def test_values_that_only_python_takes_for_equal_are_not_the_same(one: Any, other: Any):
    assert not same(one, other)
    assert same(one, one)
