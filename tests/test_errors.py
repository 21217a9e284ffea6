from mlops.errors import MlopsError


def test_problems_without_end_are_cut():
    error = MlopsError(["x" * 10**6] + [f"problem {number}" for number in range(70)])
    assert len(error.problems) == 51
    assert error.problems[-1] == "and 21 more"
    assert error.problems[0] == "x" * 1000 + "..."
    assert len(str(error)) < 3000


def test_the_password_of_an_address_is_in_no_problem():
    error = MlopsError("sweep.storag=postgresql://me:se@cr:et@host/db: no such key; see https://docs/x@y")
    assert error.problems == ["sweep.storag=postgresql://me:***@host/db: no such key; see https://docs/x@y"]
