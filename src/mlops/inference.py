"""model.onnx -> probabilities, by onnxruntime alone: no torch, and nothing of the training."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from mlops import onnx_file
from mlops.errors import MlopsError, one_line, shorten
from mlops.image import Pixels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Probabilities = npt.NDArray[np.float32]


class OnnxModel:
    """A model that `mlops export` wrote, ready to answer. Several threads may ask it at once.

    Attributes:
        metadata: all that the file says of itself, as plain values.
        classes: names, in the order of the probabilities.
        input: height, width, resize, filter and so on, as in a checkpoint; `resizes` says whether the model takes
            images of any size, or of that height and width only.
    """

    def __init__(self, content: bytes, metadata: dict[str, Any], *, where: str, threads: int = 0) -> None:
        """A model of `content`, that `onnx_file` has found safe. `threads` at most; 0 is one for each core.

        Raises:
            MlopsError: onnxruntime cannot run it (a later ONNX, perhaps), or it is not what its metadata says.
        """
        self.metadata = metadata
        self.classes: list[str] = metadata["classes"]
        self.input: dict[str, Any] = metadata["input"]
        self._session = _start(content, where, threads)
        self._check(where)

    @classmethod
    def read(cls, path: Path, *, threads: int = 0) -> Self:
        """The model in a file.

        Raises:
            MlopsError: as `onnx_file.read` does, and as above.
        """
        found = onnx_file.read(path)
        return cls(found.content, found.metadata, where=str(path), threads=threads)

    def predict(self, images: Pixels) -> Probabilities:
        """Probabilities float32 `[N, classes]` of images uint8 `[N, H, W, 3]`.

        Raises:
            ValueError: `images` are something else, or of a size that this model does not take.
        """
        size = (self.input["height"], self.input["width"])
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise ValueError(f"{images.dtype} {list(images.shape)}: must be uint8 [N, H, W, 3]")
        if not self.input["resizes"] and images.shape[1:3] != size:
            raise ValueError(f"images of {images.shape[1]} x {images.shape[2]}: this model takes {size[0]} x {size[1]}")
        (found,) = self._session.run(["probabilities"], {"images": np.ascontiguousarray(images)})
        probabilities: Probabilities = found
        return probabilities

    def _check(self, where: str) -> None:
        """Raise where the graph is not what the metadata promises."""
        inputs = [(one.name, one.type, one.shape[1:]) for one in self._session.get_inputs()]
        outputs = [(one.name, one.type, one.shape[1:]) for one in self._session.get_outputs()]
        sizes = ["H", "W"] if self.input["resizes"] else [self.input["height"], self.input["width"]]
        if inputs != [("images", "tensor(uint8)", [*sizes, 3])]:
            raise MlopsError(f"{where}: does not take images as its metadata says; export it again")
        if outputs != [("probabilities", "tensor(float)", [len(self.classes)])]:
            raise MlopsError(
                f"{where}: does not give one probability for each of {shorten(self.classes)}; export it again"
            )


def _start(content: bytes, where: str, threads: int) -> "InferenceSession":
    # Newer versions report to their maker what they run, unless told not to before they are imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MlopsError(f"{where}: needs onnxruntime to run; uv sync, or pip install onnxruntime") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # What it has to say comes as an exception, which we show in our own words.
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime has a dozen exceptions without a base of their own
        raise MlopsError(f"{where}: onnxruntime {onnxruntime.__version__} cannot run it: {one_line(error)}") from error
