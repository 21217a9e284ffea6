from pathlib import Path

import numpy as np
import pytest

from mlops.data.decode import Geometry
from mlops.errors import MlopsError
from mlops.evaluation.predict import predict_paths
from samples import png


def test_what_is_no_number_is_no_answer(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(png())
    size = Geometry(8, 8, "squash", "bilinear")
    with pytest.raises(MlopsError, match="gives NaN instead of probabilities"):
        predict_paths([tmp_path], size, ["a", "b"], lambda images: np.full((len(images), 2), np.nan))
