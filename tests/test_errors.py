from mlops.errors import MlopsError


def test_problems_without_end_are_cut():
    error = MlopsError(["x" * 10**6] + [f"problem {number}" for number in range(70)])
    assert len(error.problems) == 51
    assert error.problems[-1] == "and 21 more"
    assert error.problems[0] == "x" * 1000 + "..."
    assert len(str(error)) < 3000
