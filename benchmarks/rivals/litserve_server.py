# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "litserve==0.2.19",
#     "fastapi==0.165.0",
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
"""LitServe as its documentation shows it.

    MODEL=model.onnx PORT=8000 WORKERS=2 uv run --script benchmarks/rivals/litserve_server.py

TUNED=1 adds what that documentation offers for more speed: batches, and the queue made with ZeroMQ.
"""

import io
import json
import os
from collections.abc import Sequence

import litserve
import numpy as np
import onnxruntime
from fastapi import Request
from PIL import Image


class Classifier(litserve.LitAPI):
    """One image a request, in the multipart field `file`."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # not a default: two workers with a thread for each core are slower
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.classes = json.loads(metadata["classes"])
        given = json.loads(metadata["input"])
        self.size = (given["width"], given["height"])

    def decode_request(self, request: Request) -> np.ndarray:
        # By this annotation, LitServe hands over the request's form.
        image = Image.open(io.BytesIO(request["file"].file.read())).convert("RGB")
        # Images of one batch must be of one size.
        return np.asarray(image.resize(self.size, Image.Resampling.BILINEAR) if self.max_batch_size > 1 else image)

    def predict(self, images: np.ndarray) -> np.ndarray:
        (probabilities,) = self.session.run(["probabilities"], {"images": images.reshape(-1, *images.shape[-3:])})
        return probabilities if self.max_batch_size > 1 else probabilities[0]

    def encode_response(self, probabilities: Sequence[float]) -> dict[str, str | float]:
        best = int(np.argmax(probabilities))
        return {"class": self.classes[best], "probability": float(probabilities[best])}


if __name__ == "__main__":
    tuned = bool(os.environ.get("TUNED"))
    api = Classifier(max_batch_size=16, batch_timeout=0.002) if tuned else Classifier()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(os.environ["WORKERS"]), fast_queue=tuned)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)
