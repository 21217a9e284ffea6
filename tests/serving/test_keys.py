"""Who is let in, by which key, and how often."""

import hashlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.serving import keys
from mlops.serving.keys import MOST_KEYS, Doorkeeper, Rates, new_key, parse, read
from mlops.serving.problem import Problem


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(keys.VARIABLE, raising=False)


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + key.encode()}


def refusal(act: Callable[[], object]) -> Problem:
    with pytest.raises(Problem) as caught:
        act()
    return caught.value


def write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines))
    return file


def test_a_new_key_is_long_and_its_line_lets_it_in_without_holding_it(tmp_path: Path):
    key, line = new_key("alice")
    assert len(key) >= 43
    assert new_key("alice")[0] != key
    assert line == f"alice:{hashlib.sha256(key.encode()).hexdigest()}"
    assert Doorkeeper(write(tmp_path / "keys", line), None).admit(bearer(key)) == "alice"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nb", "ä", "x" * 65, "#x"])
def test_a_name_that_cannot_stand_in_the_file_is_refused(name: str):
    with pytest.raises(MlopsError, match="must be 1 to 64 letters"):
        new_key(name)


def test_a_key_may_come_in_either_header_and_however_bearer_is_written(tmp_path: Path):
    key, line = new_key("alice")
    door = Doorkeeper(write(tmp_path / "keys", "# ours", "", f"  {line}  "), None)
    for headers in (
        {b"authorization": b"Bearer " + key.encode()},
        {b"authorization": b"bearer  " + key.encode() + b" "},
        {b"authorization": b"BEARER " + key.encode()},
        {b"x-api-key": key.encode()},
        {b"authorization": b"Basic eDp5", b"x-api-key": key.encode()},
    ):
        assert door.admit(headers) == "alice"


def test_no_key_and_a_wrong_one_are_refused_and_neither_is_repeated(tmp_path: Path):
    key, line = new_key("alice")
    digest = line.partition(":")[2]
    door = Doorkeeper(write(tmp_path / "keys", line), None)
    wrong = [{}, bearer(""), bearer("s3cret"), bearer(key[:-1]), bearer(key + "x"), bearer(digest), bearer("ä")]
    wrong += [{b"x-api-key": b""}, {b"x-api-key": b"\xff\x00"}, {b"authorization": key.encode()}]
    for headers in wrong:
        problem = refusal(lambda headers=headers: door.admit(headers))
        assert problem.status == 401
        assert problem.headers == {"WWW-Authenticate": "Bearer"}
        assert "s3cret" not in problem.detail


def test_where_no_keys_are_named_anybody_is_let_in():
    assert read(None, {}) is None
    assert Doorkeeper(None, None).admit({}) is None


def test_keys_of_the_environment_and_of_the_file_are_let_in_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (one, first), (two, second), (three, third) = (new_key(name) for name in ("one", "two", "three"))
    monkeypatch.setenv(keys.VARIABLE, f"{first},{second}")
    door = Doorkeeper(write(tmp_path / "keys", third), None)
    assert [door.admit(bearer(key)) for key in (one, two, three)] == ["one", "two", "three"]
    monkeypatch.setenv(keys.VARIABLE, first)
    assert refusal(lambda: Doorkeeper(None, None).admit(bearer(two))).status == 401


@pytest.mark.parametrize("text", ["", " ", ",", "# none"])
def test_a_variable_or_a_file_without_a_key_is_a_mistake_and_opens_nothing(tmp_path: Path, text: str):
    with pytest.raises(MlopsError, match="MLOPS_API_KEYS: holds no key"):
        read(None, {keys.VARIABLE: text})
    with pytest.raises(MlopsError, match="keys: holds no key"):
        read(write(tmp_path / "keys", text.replace(",", "\n")), {})


def test_a_wrong_line_is_named_by_its_number_and_never_shown(tmp_path: Path):
    key, line = new_key("alice")
    name, digest = line.split(":")
    wrong = [
        key,
        f"{name}:{key}",
        f"{name}:{digest[:-1]}",
        f"{name}:{digest.upper()}",
        f"{name} {digest}",
        f":{digest}",
    ]
    with pytest.raises(MlopsError) as caught:
        read(write(tmp_path / "keys", line, *wrong), {})
    assert len(caught.value.problems) == len(wrong)
    for number, problem in enumerate(caught.value.problems, 2):
        assert problem == f"{tmp_path / 'keys'}: line {number}: must be NAME:SHA256, as `mlops new-key NAME` prints it"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", "folder"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | str | None):
    file = tmp_path / "keys"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(MlopsError, match="keys"):
        read(file, {})


def test_a_byte_order_mark_is_passed_over(tmp_path: Path):
    _, line = new_key("alice")
    (tmp_path / "keys").write_text(f"\ufeff{line}\n", encoding="utf-8")
    assert list((read(tmp_path / "keys", {}) or {}).values()) == ["alice"]


def test_more_keys_than_there_are_rates_for_are_refused_wherever_they_stand(tmp_path: Path):
    def lines(prefix: str, count: int) -> str:
        return "\n".join(f"{prefix}{n}:{hashlib.sha256(f'{prefix}{n}'.encode()).hexdigest()}" for n in range(count))

    environment = {keys.VARIABLE: lines("e", MOST_KEYS // 2)}
    found = read(write(tmp_path / "keys", lines("f", MOST_KEYS // 2)), environment)
    assert len(found or {}) == MOST_KEYS
    with pytest.raises(MlopsError, match="4,097 keys: at most 4,096"):
        read(write(tmp_path / "keys", lines("f", MOST_KEYS // 2 + 1)), environment)


def test_a_name_may_have_two_keys_so_that_one_can_be_replaced(tmp_path: Path):
    (old, first), (new, second) = new_key("alice"), new_key("alice")
    rates = Rates(tmp_path / "rates", rate=0.001, burst=2)
    door = Doorkeeper(write(tmp_path / "keys", first, second), rates)
    assert [door.admit(bearer(key)) for key in (old, new)] == ["alice", "alice"]
    assert refusal(lambda: door.admit(bearer(new))).status == 429, "both count as one"


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "_LOOK", 0.0)


@pytest.mark.usefixtures("_looks_often")
def test_a_file_that_changes_is_read_again_and_a_bad_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (old, first), (new, second) = new_key("alice"), new_key("bob")
    file = write(tmp_path / "keys", first)
    door = Doorkeeper(file, None)
    assert door.admit(bearer(old)) == "alice"

    file.write_text(f"bob:{new}")  # the key itself, by mistake
    with caplog.at_level(logging.ERROR):
        assert door.admit(bearer(old)) == "alice"
    assert "keys: those before stay: " in caplog.text
    assert new not in caplog.text

    file.unlink()
    assert door.admit(bearer(old)) == "alice"

    (tmp_path / "other").write_text(second)
    (tmp_path / "other").replace(file)
    assert door.admit(bearer(new)) == "bob"
    assert refusal(lambda: door.admit(bearer(old))).status == 401


def test_a_file_is_not_looked_at_for_every_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key, line = new_key("alice")
    door = Doorkeeper(write(tmp_path / "keys", line), None)
    looks: list[Path] = []
    monkeypatch.setattr(keys, "_stamp", looks.append)
    for _ in range(100):
        door.admit(bearer(key))
    assert looks == []


def test_a_burst_is_let_in_and_the_next_is_told_how_long_to_wait(tmp_path: Path):
    rates = Rates(tmp_path / "rates", rate=0.1, burst=3)
    for _ in range(3):
        rates.take(0)
    problem = refusal(lambda: rates.take(0))
    assert problem.status == 429
    assert problem.headers == {"Retry-After": "10"}
    rates.take(1)  # another key's are its own


def test_without_a_burst_a_key_may_save_up_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    fast, slow = Rates(tmp_path / "fast", rate=5, burst=None), Rates(tmp_path / "slow", rate=0.01, burst=None)
    for _ in range(5):
        fast.take(0)
    assert refusal(lambda: fast.take(0)).headers == {"Retry-After": "1"}
    slow.take(0)
    assert refusal(lambda: slow.take(0)).headers == {"Retry-After": "100"}


def test_what_was_taken_comes_back_with_time_up_to_the_burst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rates = Rates(tmp_path / "rates", rate=2, burst=4)
    for _ in range(4):
        rates.take(0)
    now[0] += 1
    rates.take(0)
    rates.take(0)
    assert refusal(lambda: rates.take(0)).status == 429
    now[0] += 1000
    for _ in range(4):
        rates.take(0)
    assert refusal(lambda: rates.take(0)).status == 429


TAKE_ALL = """
import pathlib, sys
from mlops.serving.keys import Rates
from mlops.serving.problem import Problem
rates, count = Rates(pathlib.Path(sys.argv[1]), rate=0.001, burst=50), 0
sys.stdin.readline()
try:
    while True:
        rates.take(7)
        count += 1
except Problem:
    print(count)
"""


def test_two_processes_count_a_key_together(tmp_path: Path):
    command = [sys.executable, "-c", TAKE_ALL, str(tmp_path / "rates")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    taken = sum(int(process.communicate("go\n", 60)[0]) for process in processes)
    # Two may count at the same moment and miss one; far from twice as many.
    assert 50 <= taken <= 75
    assert (tmp_path / "rates").stat().st_size == 16 * MOST_KEYS


def test_the_last_slot_has_a_rate_too(tmp_path: Path):
    rates = Rates(tmp_path / "rates", rate=0.001, burst=1)
    rates.take(MOST_KEYS - 1)
    assert refusal(lambda: rates.take(MOST_KEYS - 1)).status == 429


def test_lines_are_parsed_whatever_ends_them():
    _, one = new_key("one")
    _, two = new_key("two")
    assert sorted(parse(f"{one}\r\n\r\n# x\r\n{two}\r\n", "here").values()) == ["one", "two"]
