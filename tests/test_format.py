"""Format 1 is frozen: the file that `tests/fixtures/make_format1.py` made once opens for ever."""

import csv
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from conftest import Command
from mlops import checkpoint
from mlops.targets import MODELS, OPTIMIZERS
from samples import ROOT, png

FIXTURES = Path(__file__).parent / "fixtures"
FILE = FIXTURES / "format1.pth"


def test_the_fixture_is_the_one_that_was_committed():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == (FIXTURES / "format1.sha256").read_text().split()[0]


def test_a_file_of_format_1_opens_and_its_network_says_what_it_said_then():
    loaded = checkpoint.read(FILE)
    assert loaded.metadata["format"] == 1
    assert loaded.classes == [str(digit) for digit in range(10)]
    kept = np.load(FIXTURES / "format1.npz")
    with torch.inference_mode():
        logits = checkpoint.rebuild(loaded, MODELS | OPTIMIZERS)(torch.from_numpy(kept["images"])).numpy()
    # Another machine's instructions round differently.
    np.testing.assert_allclose(logits, kept["logits"], rtol=1e-4, atol=1e-5)
    assert (logits.argmax(1) == kept["logits"].argmax(1)).all()


def test_a_file_of_format_1_is_shown_and_used(mlops_command: Command, tmp_path: Path):
    page = mlops_command("info", FILE)
    assert page.code == 0, page.err
    assert "recognises" in page.out
    assert "10 classes: 0, 1, 2" in page.out
    assert mlops_command("info", FILE, "--config").code == 0
    assert mlops_command("diff", FILE, FILE).code == 0
    (tmp_path / "x.png").write_bytes(png())
    rows = mlops_command("predict", FILE, tmp_path / "x.png", "--csv", "-").out.splitlines()
    assert len([*csv.reader(rows)]) == 2
    assert mlops_command("report", FILE, "--processed", tmp_path, "--output", tmp_path / "report").code == 0


def test_the_example_of_the_documentation_reads_it():
    text = (ROOT / "docs" / "checkpoint.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    found: dict[str, object] = {}
    exec(example.replace("best_model.pth", FILE.as_posix()), found)
    assert found["metadata"] == checkpoint.read_metadata(FILE)


def test_the_documentation_lists_every_field():
    text = (ROOT / "docs" / "checkpoint.md").read_text(encoding="utf-8")
    with zipfile.ZipFile(FILE) as archive:
        metadata = json.loads(archive.read("archive/metadata.json"))
    for name, value in metadata.items():
        assert f"| `{name}` |" in text, name
        if isinstance(value, dict) and name not in ("config", "metrics"):
            assert all(f"`{key}`" in text for key in value), (name, [*value])
