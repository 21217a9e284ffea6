"""Forty plain lines of FastAPI and onnxruntime, with what one should know of both: one thread a worker, uvloop.

    MODEL=model.onnx uvicorn --app-dir benchmarks/rivals plain_onnx:app --workers 2 --no-access-log

The endpoint is `async`, which on two cores answers more requests than a plain `def` in a pool of threads.
"""

import io
import json
import os

import numpy as np
import onnxruntime
from fastapi import FastAPI, UploadFile
from PIL import Image

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
app = FastAPI()


@app.get("/health/ready")
async def ready() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, str | float]:
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    # The graph resizes by itself.
    (probabilities,) = session.run(["probabilities"], {"images": np.asarray(image)[None]})
    best = int(probabilities[0].argmax())
    return {"class": classes[best], "probability": float(probabilities[0, best])}
