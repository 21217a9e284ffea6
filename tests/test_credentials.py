"""Key files are found, whatever they are called, and refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

from mlops.credentials import key_in, keys_below

# Put together here, so that no file of this repository looks like one.
PEM = f"-----BEGIN {'PRIVATE'} KEY-----\n{'MIIEvQ' * 12}\n"


def write_key(path: Path, **more: str) -> Path:
    path.write_text(json.dumps({"type": "service_account", "private_key": PEM, "client_email": "a@b", **more}))
    return path


def test_googles_key_files_and_private_keys_are_told_from_other_files(tmp_path: Path):
    assert key_in(write_key(tmp_path / "innocent.txt")) == "Google credentials (service_account)"
    personal = tmp_path / "adc.json"
    personal.write_text(json.dumps({"type": "authorized_user", "refresh_token": "1//0g", "client_id": "x"}))
    assert key_in(personal) == "Google credentials (authorized_user)"
    (tmp_path / "id_rsa").write_text(PEM)
    assert key_in(tmp_path / "id_rsa") == "a private key"
    quoted = json.dumps({"private_key": PEM, "type": "service_account"})
    for name, text in (
        (".env", f"GOOGLE='{quoted}'"),
        ("list.json", f"[{quoted}]"),
        ("twice.json", json.dumps(quoted)),
    ):
        (tmp_path / name).write_text(text)
        assert key_in(tmp_path / name) == "a private key", name
    for name, text in (
        ("federated.json", json.dumps({"type": "external_account", "audience": "x"})),
        ("empty.json", json.dumps({"type": "service_account"})),
        ("doc.md", f"write -----BEGIN {'PRIVATE'} KEY----- here"),
        ("deep.json", '{"type": ' + "[" * 60_000),
    ):
        (tmp_path / name).write_text(text)
        assert key_in(tmp_path / name) is None, name
    assert key_in(tmp_path) is None
    assert key_in(tmp_path / "missing") is None


def test_the_tree_is_searched_but_for_data_and_environments(tmp_path: Path):
    for folder in ("src", "src/data", "data", ".venv/lib", ".git", "outputs"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        write_key(tmp_path / folder / "key.json")
    assert [path.as_posix() for path, _ in keys_below(tmp_path)] == ["src/key.json", "src/data/key.json"]


def test_the_hook_names_each_and_exits_with_2(tmp_path: Path):
    fine = tmp_path / "fine.py"
    fine.write_text("print(1)\n")
    hook = [sys.executable, "-m", "mlops.credentials"]
    assert subprocess.run([*hook, str(fine)], check=False).returncode == 0
    keys = [str(write_key(tmp_path / name)) for name in ("a.json", "b.json")]
    done = subprocess.run([*hook, str(fine), *keys], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {key}: holds Google credentials (service_account); move it out of the repository and name it by "
        "GOOGLE_APPLICATION_CREDENTIALS, or by `dvc remote modify --local NAME credentialpath`"
        for key in keys
    ]
