"""model.onnx -> probabilities, by onnxruntime alone: no torch, and nothing of the training."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from mlops import onnx_file
from mlops.errors import MlopsError, one_line, shorten
from mlops.image import Pixels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Probabilities = npt.NDArray[np.float32]
# Rows of numbers, float32 `[N, F]`.
Features = npt.NDArray[np.float32]


class OnnxModel:
    """A model that `mlops export` or `mlops adopt` wrote, ready to answer. Several threads may ask it at once.

    Attributes:
        metadata: all that the file says of itself, as plain values.
        classes: names, in the order of the probabilities.
        kind: what it takes: `images`, or `features`, which are rows of numbers.
        input: of images: height, width, resize, filter and so on, as in a checkpoint; `resizes` says whether the model
            takes images of any size, or of that height and width only. Of features: `features`, how many in a row,
            and their `names` or None.
    """

    def __init__(self, content: bytes, metadata: dict[str, Any], *, where: str, threads: int = 0) -> None:
        """A model of `content`, that `onnx_file` has found safe. `threads` at most; 0 is one for each core.

        Raises:
            MlopsError: onnxruntime cannot run it (a later ONNX, perhaps), or it is not what its metadata says.
        """
        self.metadata = metadata
        self.classes: list[str] = metadata["classes"]
        self.input: dict[str, Any] = metadata["input"]
        self.kind: Literal["images", "features"] = "features" if "features" in self.input else "images"
        self._where = where
        self._session = start_session(content, where, threads)
        self._check(where)

    @classmethod
    def read(cls, path: Path, *, threads: int = 0) -> Self:
        """The model in a file.

        Raises:
            MlopsError: as `onnx_file.read` does, and as above.
        """
        found = onnx_file.read(path)
        return cls(found.content, found.metadata, where=str(path), threads=threads)

    def predict(self, given: Pixels | Features) -> Probabilities:
        """Probabilities float32 `[N, classes]` of images uint8 `[N, H, W, 3]`, or of features float32 `[N, F]`.

        Raises:
            ValueError: `given` is something else, or of a size that this model does not take.
            MlopsError: the model fails when it runs.
        """
        self._check_given(given)
        try:
            (found,) = self._session.run(["probabilities"], {self.kind: np.ascontiguousarray(given)})
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime has a dozen exceptions without a base of their own
            raise MlopsError(f"{self._where}: cannot answer: {one_line(error)[:300]}") from error
        probabilities: Probabilities = found
        return probabilities

    def _check_given(self, given: npt.NDArray[Any]) -> None:
        if self.kind == "features":
            wanted = self.input["features"]
            if given.dtype != np.float32 or given.ndim != 2 or given.shape[1] != wanted or not len(given):
                raise ValueError(f"{given.dtype} {list(given.shape)}: must be float32 [N, {wanted}]")
            return
        size = (self.input["height"], self.input["width"])
        if given.dtype != np.uint8 or given.ndim != 4 or given.shape[3] != 3 or 0 in given.shape:
            raise ValueError(f"{given.dtype} {list(given.shape)}: must be uint8 [N, H, W, 3]")
        if not self.input["resizes"] and given.shape[1:3] != size:
            raise ValueError(f"images of {given.shape[1]} x {given.shape[2]}: this model takes {size[0]} x {size[1]}")

    def _check(self, where: str) -> None:
        """Raise where the graph is not what the metadata promises."""
        inputs = [(one.name, one.type, one.shape[1:]) for one in self._session.get_inputs()]
        outputs = [(one.name, one.type, one.shape[1:]) for one in self._session.get_outputs()]
        if self.kind == "features":
            wanted = ("features", "tensor(float)", [self.input["features"]])
        else:
            sizes = ["H", "W"] if self.input["resizes"] else [self.input["height"], self.input["width"]]
            wanted = ("images", "tensor(uint8)", [*sizes, 3])
        if inputs != [wanted]:
            raise MlopsError(f"{where}: does not take {self.kind} as its metadata says; export it again")
        if outputs != [("probabilities", "tensor(float)", [len(self.classes)])]:
            raise MlopsError(
                f"{where}: does not give one probability for each of {shorten(self.classes)}; export it again"
            )


def start_session(content: bytes, where: str, threads: int) -> "InferenceSession":
    """A session of onnxruntime on a model that `onnx_file` has found safe.

    Raises:
        MlopsError: onnxruntime is not installed, or cannot run it.
    """
    # Newer versions report to their maker what they run, unless told not to before they are imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MlopsError(f"{where}: needs onnxruntime to run; uv sync, or pip install onnxruntime") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Operators run one after another: threads for several at once would only be started.
    options.inter_op_num_threads = 1
    if threads == 1:
        # Who asks for one thread has others at work beside it; a pool, should there be one, must not burn their time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What it has to say comes as an exception, which we show in our own words.
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime has a dozen exceptions without a base of their own
        raise MlopsError(f"{where}: onnxruntime {onnxruntime.__version__} cannot run it: {one_line(error)}") from error
