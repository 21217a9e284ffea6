import math
import time
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.sweeps.plain_yaml import MOST_LETTERS, Exponent, load, plain


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sweep.yaml"


def refusal(file: Path) -> str:
    """What is said of a file that is refused, after its path."""
    with pytest.raises(MlopsError) as caught:
        load(file)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}: ")
    return problem.removeprefix(f"{file}: ")


def test_a_file_is_read_as_wandb_reads_it(file: Path):
    file.write_text("a: yes\nb: off\nc: ~\nd: 010\ne: 1_000\nf: 1.5e-3\ng: 'yes'\nh: [1, {i: x y}]\n${j}: ${k}\n")
    expected = {"a": True, "b": False, "c": None, "d": 8, "e": 1000, "f": 0.0015, "g": "yes", "h": [1, {"i": "x y"}]}
    assert load(file) == expected | {"${j}": "${k}"}


@pytest.mark.parametrize(
    ("text", "number", "for_wandb"),
    [
        ("1e-5", 1e-5, "1.0e-05"),
        ("-3E4", -3e4, "-30000.0"),
        ("1e+3", 1e3, "1000.0"),
        ("2.5e30", 2.5e30, "2.5e+30"),
        ("1.e5", 1e5, "100000.0"),
        (".5e7", 5e6, "5000000.0"),
    ],
)
def test_an_exponent_that_wandb_reads_as_text_is_a_number_that_remembers_how_it_was_written(
    file: Path, text: str, number: float, for_wandb: str
):
    file.write_text(f"lr: {text}\n")
    found = load(file)["lr"]
    assert isinstance(found, Exponent)
    assert (found, found.text, found.as_yaml_1_1()) == (number, text, for_wandb)
    file.write_text(f"lr: {for_wandb}\n")
    assert type(load(file)["lr"]) is float
    assert load(file)["lr"] == number


@pytest.mark.parametrize("text", ["'1e-5'", '"1e-5"', "1e", "e5", "1e5x", "0x1e5", "1-e5", "1e5.0"])
def test_what_only_looks_like_an_exponent_is_none(file: Path, text: str):
    file.write_text(f"lr: {text}\n")
    assert not isinstance(load(file)["lr"], float)


def test_plain_values_have_no_exponents_at_any_depth(file: Path):
    file.write_text("a: [1e-5, {b: 2e3, c: [x, 3, null]}]\n")
    found = plain(load(file))
    assert found == {"a": [1e-5, {"b": 2e3, "c": ["x", 3, None]}]}
    assert [type(found["a"][0]), type(found["a"][1]["b"])] == [float, float]


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x: {a: 1, a: 1}\n", "x: [{k: {a: 1, 'a': 2}}]\n"])
def test_a_key_that_stands_twice_is_refused_and_not_overwritten(file: Path, text: str):
    file.write_text(text)
    assert "is not YAML: key a stands twice" in refusal(file)


def test_a_list_or_a_map_is_no_key(file: Path):
    file.write_text("? [a, b]\n: 1\n")
    assert "key ['a', 'b'] stands twice, or is no key" in refusal(file)
    file.write_text("x: {? {a: 1} : 1}\n")
    assert "or is no key" in refusal(file)


def test_aliases_are_refused_before_they_are_followed(file: Path):
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    file.write_text("\n".join(laughs))
    assert refusal(file) == "has YAML aliases (*name); write values out"
    file.write_text("a: &a [*a]\n")
    assert refusal(file) == "has YAML aliases (*name); write values out"


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{folder}]",
        "!!python/object/new:os.mkdir [{folder}]",
        "!!python/object/apply:pathlib.Path.mkdir [!!python/object/apply:pathlib.Path [{folder}]]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
        "!Ref {folder}",
        "!exponent [1]",
    ],
)
def test_a_tag_builds_and_runs_nothing(tmp_path: Path, file: Path, value: str):
    made = tmp_path / "made"
    file.write_text(f"a: {value.replace('{folder}', str(made))}\n")
    assert refusal(file).startswith("is not YAML: ")
    assert not made.exists()


def test_the_tag_of_an_exponent_on_what_is_none_is_refused(file: Path):
    file.write_text("a: !exponent abc\n")
    assert refusal(file).startswith("is not YAML: ")


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n", "3\n", "null\n"])
def test_a_file_without_a_map_is_no_sweep_file(file: Path, text: str):
    file.write_text(text)
    assert refusal(file) == "must be a map with program, method, metric and parameters"


@pytest.mark.parametrize("text", ["a: [1\n", "a: 'x\n", "a: 1\n---\nb: 2\n", "a: \x07\n", "\ta: 1\n", "%x\n"])
def test_broken_yaml_is_one_line(file: Path, text: str):
    file.write_text(text)
    assert refusal(file).startswith("is not YAML: ")


def test_bytes_that_are_no_text_are_refused(file: Path):
    file.write_bytes(b"a: \xff\xfe\n")
    assert refusal(file).startswith("is not YAML: 'utf-8' codec can't decode")


def test_a_file_that_is_not_there_or_is_a_folder_is_said(tmp_path: Path):
    assert refusal(tmp_path / "none.yaml") == "cannot be read: No such file or directory; name a sweep file"
    assert refusal(tmp_path) == "cannot be read: Is a directory; name a sweep file"


def test_a_huge_file_is_refused_without_being_read_to_its_end(file: Path):
    with file.open("wb") as huge:
        huge.truncate(50 * 2**30)
    start = time.process_time()
    assert refusal(file) == f"has more than {MOST_LETTERS:,} letters; that is no sweep file"
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["a: " + "[" * 1500, "a: " + "{b: " * 1500 + "}" * 1500, "- " * 1500])
def test_what_is_nested_without_end_is_refused_before_it_costs_time(file: Path, text: str):
    file.write_text(text)
    start = time.process_time()
    assert "nested" in refusal(file)
    assert time.process_time() - start < 10


def test_a_number_with_thousands_of_digits_is_refused(file: Path):
    file.write_text(f"a: {'9' * 5000}\n")
    assert "Exceeds the limit" in refusal(file)


def test_infinity_is_a_number(file: Path):
    file.write_text("a: .inf\nb: 1e999\n")
    assert plain(load(file)) == {"a": math.inf, "b": math.inf}
