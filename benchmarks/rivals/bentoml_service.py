# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "bentoml==1.4.40",
#     "httptools==0.9.0",
#     "numpy==2.5.5",
#     "onnxruntime==1.31.1",
#     "pillow==13.0.0",
#     "python-multipart==0.0.34",
#     "starlette==1.10.0",
#     "uvicorn==0.54.0",
#     "uvloop==0.23.0",
# ]
# ///
"""BentoML as its documentation shows it.

    MODEL=model.onnx PORT=8000 WORKERS=2 uv run --script benchmarks/rivals/bentoml_service.py

TUNED=1 turns off its log of requests and its metrics.
"""

import json
import os
import sys
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime
from PIL import Image

tuned = {"logging": {"access": {"enabled": False}}, "metrics": {"enabled": False}} if os.environ.get("TUNED") else {}


@bentoml.service(workers=int(os.environ["WORKERS"]), **tuned)
class Classifier:
    """One image a request, in the multipart field `file`."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # not a default: two workers with a thread for each core are slower
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.classes = json.loads(self.session.get_modelmeta().custom_metadata_map["classes"])

    @bentoml.api
    def predict(self, file: Image.Image) -> dict[str, str | float]:
        images = np.asarray(file.convert("RGB"))[None]
        (probabilities,) = self.session.run(["probabilities"], {"images": images})
        best = int(probabilities[0].argmax())
        return {"class": self.classes[best], "probability": float(probabilities[0, best])}


if __name__ == "__main__":
    program, folder = Path(sys.executable).with_name("bentoml"), Path(__file__).parent
    told = f"serve bentoml_service:Classifier --host 127.0.0.1 --port {os.environ['PORT']} --working-dir"
    os.execv(program, [str(program), *told.split(), str(folder)])
