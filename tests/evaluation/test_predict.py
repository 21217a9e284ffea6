from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from conftest import Command
from mlops.data.decode import Geometry
from mlops.errors import MlopsError
from mlops.evaluation.predict import predict_paths
from samples import png
from serving.models import fails_when_it_runs, write_model


def test_what_is_no_number_is_no_answer(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(png())
    size = Geometry(8, 8, "squash", "bilinear")
    with pytest.raises(MlopsError, match="gives NaN instead of probabilities"):
        predict_paths([tmp_path], size, ["a", "b"], lambda images: np.full((len(images), 2), np.nan))


def test_a_model_that_fails_when_it_runs_is_one_line(workplace: Path, mlops_command: Command):
    model = ModelProto.FromString(write_model(workplace / "m.onnx").read_bytes())
    fails_when_it_runs(model)
    Path("m.onnx").write_bytes(model.SerializeToString())
    Path("x.png").write_bytes(png())
    done = mlops_command("predict", "m.onnx", "x.png")
    assert done.code == 2
    (line,) = done.errors
    assert line.startswith("m.onnx: cannot answer: ")
