"""One server for all tests that change nothing of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.models import write_features, write_model
from serving.server import Server

CONFIG = """
models: {digits: digits.onnx, colours: colours.onnx, others: others.onnx, numbers: numbers.onnx}
default: colours
ensembles:
  mean: [colours, others]
  weighted: {members: {colours: 3, others: 1}}
aliases:
  /cv_model/: {to: colours, field: data}
  /image_classify: mean
  /predict_clip: numbers
limits: {body_bytes: 1000000, files: 8, pixels: 4000000}
drain_seconds: 0.2
"""


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of four models, two ensembles and three aliases, with two workers; see `CONFIG`."""
    folder: Path = tmp_path_factory.mktemp("served")
    write_model(folder / "digits.onnx", [str(digit) for digit in range(10)], size=12)
    write_model(folder / "colours.onnx")
    write_model(folder / "others.onnx", scale=1.0)
    write_features(folder / "numbers.onnx")
    (folder / "serve.yaml").write_text(CONFIG)
    with Server(folder, ("--config", "serve.yaml"), workers=2) as server:
        yield server
