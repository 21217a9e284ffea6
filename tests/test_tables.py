import shlex

import pytest

from mlops.tables import to_copy

AWKWARD = "my runs/it's $HOME/best_model.pth"


@pytest.mark.parametrize(("uv", "prefix"), [(None, []), ("/usr/bin/uv", ["uv", "run"])])
def test_a_command_to_copy_runs_where_the_run_was_started(
    uv: str | None, prefix: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("UV", raising=False)
    if uv:
        monkeypatch.setenv("UV", uv)
    assert shlex.split(to_copy("mlops", "info", AWKWARD)) == [*prefix, "mlops", "info", AWKWARD]


def test_a_windows_path_in_a_command_to_copy_has_double_quotes_and_only_where_it_must(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr("sys.platform", "win32")
    assert to_copy("mlops", "info", r"C:\runs\best_model.pth") == r"mlops info C:\runs\best_model.pth"
    assert to_copy("mlops", "info", r"C:\my runs\best_model.pth") == r'mlops info "C:\my runs\best_model.pth"'
