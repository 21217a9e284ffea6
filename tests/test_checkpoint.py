import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops import checkpoint, config
from mlops.errors import MlopsError
from mlops.models.build import build_model
from mlops.targets import MODELS

NODE = {"_target_": "mlops.models.SignNet", "width": 8}


def metadata(**changes: Any) -> dict[str, Any]:
    values = config.defaults()
    values["model"] = NODE
    return {
        "config": values,
        "classes": ["cat", "dög"],
        "input": {
            "height": 16,
            "width": 16,
            "mean": [0.1] * 3,
            "std": [0.2] * 3,
            "resize": "squash",
            "filter": "bilinear",
        },
        "metrics": {"epoch": 1, "val_Accuracy": 1 / 3},
        "code": {"version": "0.1.0"},
        "temperature": None,
        **changes,
    }


@pytest.fixture
def model() -> torch.nn.Module:
    return build_model(NODE, MODELS, num_classes=2, image_size=16, channels_last=True).eval()


@pytest.fixture
def path(tmp_path: Path, model: torch.nn.Module) -> Path:
    checkpoint.save(tmp_path / "best_model.pth", model.state_dict(), metadata())
    return tmp_path / "best_model.pth"


def test_what_is_saved_is_read_and_rebuilt_bit_for_bit(path: Path, model: torch.nn.Module):
    loaded = checkpoint.read(path)
    assert loaded.classes == ["cat", "dög"]
    assert loaded.config.model == NODE
    images = torch.randn(8, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(checkpoint.rebuild(loaded, MODELS)(images), model(images))


def test_metadata_is_plain_json_in_the_file_equal_to_the_pickled_copy(path: Path):
    with zipfile.ZipFile(path) as archive:
        as_json = json.loads(archive.read("archive/metadata.json"))
    pickled = torch.load(path, weights_only=True)
    del pickled["state_dict"]
    assert as_json == pickled == checkpoint.read_metadata(path)
    assert as_json["format"] == 1
    assert len(as_json["digest"]) == 64


def test_reading_metadata_imports_no_torch(path: Path):
    code = f"import sys; from mlops.checkpoint import read_metadata; from pathlib import Path; read_metadata(Path({str(path)!r})); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def rewrite(path: Path, change: Any) -> None:
    """Write the file anew with one entry changed: `change(name, data)` gives the new data, or None to leave it out."""
    entries = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = change(name, archive.read(name))
            if data is not None:
                entries.append((name, data))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)


def test_changed_weights_are_found(path: Path):
    def flip(name: str, data: bytes) -> bytes:
        return data[:9] + bytes([data[9] ^ 1]) + data[10:] if name == "archive/data/0" else data

    rewrite(path, flip)
    with pytest.raises(MlopsError, match="does not match its digest"):
        checkpoint.read(path)


def test_changed_metadata_is_found(path: Path):
    rewrite(path, lambda name, data: data.replace(b'"cat"', b'"cow"') if name.endswith("metadata.json") else data)
    with pytest.raises(MlopsError, match="does not match its digest"):
        checkpoint.read(path)


def test_a_later_format_is_refused_with_the_version_that_reads_it(
    tmp_path: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    checkpoint.save(tmp_path / "later.pth", model.state_dict(), metadata(code={"version": "9.9.0"}))
    monkeypatch.undo()
    with pytest.raises(MlopsError, match=r"format 2 is later than 1, .* read it with mlops 9\.9\.0"):
        checkpoint.read(tmp_path / "later.pth")


class Evil:
    """Runs code when it is unpickled by anything that allows it."""

    def __init__(self, touched: Path) -> None:
        self._touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._touched), "w"))


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, path: Path):
    touched = tmp_path / "touched"
    with zipfile.ZipFile(path) as archive:
        planted = archive.read("archive/metadata.json")
    with (tmp_path / "evil.pth").open("wb") as file:
        torch.save({"state_dict": Evil(touched)}, file)
    with zipfile.ZipFile(tmp_path / "evil.pth", "a") as archive:
        archive.writestr("archive/metadata.json", planted)
    with pytest.raises(MlopsError, match="is damaged or no checkpoint of this project"):
        checkpoint.read(tmp_path / "evil.pth")
    assert not touched.exists()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_one_line(path: Path, share: float):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(MlopsError, match="is not a checkpoint of this project"):
        checkpoint.read(path)


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "plain.pth")
    for name in ("text.pth", "plain.pth"):
        with pytest.raises(MlopsError, match="is not a checkpoint of this project"):
            checkpoint.read(tmp_path / name)
    with pytest.raises(MlopsError, match="no such file; train first"):
        checkpoint.read(tmp_path / "none.pth")
    with pytest.raises(MlopsError, match=str(tmp_path)):
        checkpoint.read(tmp_path)


def test_a_target_that_is_not_allowed_is_not_built(tmp_path: Path, model: torch.nn.Module):
    values = metadata()
    values["config"]["model"] = {"_target_": "builtins.open", "file": str(tmp_path / "planted"), "mode": "w"}
    checkpoint.save(tmp_path / "bad.pth", model.state_dict(), values)
    with pytest.raises(MlopsError, match=r"model\._target_=builtins\.open: is not an allowed name"):
        checkpoint.rebuild(checkpoint.read(tmp_path / "bad.pth"), MODELS)
    assert not (tmp_path / "planted").exists()


def test_a_loaded_config_is_never_resolved_again(
    tmp_path: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET", "hunter2")
    values = metadata()
    values["config"]["tracking"]["project"] = "${oc.env:SECRET}"
    checkpoint.save(tmp_path / "x.pth", model.state_dict(), values)
    assert checkpoint.read(tmp_path / "x.pth").config.tracking.project == "${oc.env:SECRET}"


def test_weights_that_do_not_fit_the_model_are_one_line(tmp_path: Path, model: torch.nn.Module):
    checkpoint.save(tmp_path / "x.pth", model.state_dict(), metadata(classes=["one", "two", "three"]))
    with pytest.raises(MlopsError, match="its weights do not fit its model"):
        checkpoint.rebuild(checkpoint.read(tmp_path / "x.pth"), MODELS)


def test_a_file_that_is_replaced_again_and_again_is_whole_at_every_read(path: Path, model: torch.nn.Module):
    ended = threading.Event()

    def replace() -> None:
        while not ended.is_set():
            checkpoint.save(path, model.state_dict(), metadata())

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        digests = {checkpoint.read(path).metadata["digest"] for _ in range(30)}
    finally:
        ended.set()
        writer.join()
    assert len(digests) == 1
