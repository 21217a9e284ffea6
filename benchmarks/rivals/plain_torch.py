"""The server of many a course project: FastAPI, Pillow, torchvision's transforms, torch.

    MODEL=best_model.pth uvicorn --app-dir benchmarks/rivals plain_torch:app --workers 2

TORCH_THREADS=1 gives each worker one thread; without it torch takes as many as there are cores.
"""

import io
import os
from pathlib import Path

import torch
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision import transforms

from mlops import checkpoint, config, targets

if threads := os.environ.get("TORCH_THREADS"):
    torch.set_num_threads(int(threads))

held = checkpoint.read(Path(os.environ["MODEL"]))
model = checkpoint.rebuild(held, targets.read_allowed(config.config_folder()))
given = held.metadata["input"]
transform = transforms.Compose(
    [
        transforms.Resize((given["height"], given["width"])),
        transforms.ToTensor(),
        transforms.Normalize(given["mean"], given["std"]),
    ]
)
app = FastAPI()


@app.get("/health/ready")
async def ready() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, str | float]:
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    with torch.no_grad():
        probabilities = torch.softmax(model(transform(image).unsqueeze(0)), dim=1)[0]
    best = int(probabilities.argmax())
    return {"class": held.classes[best], "probability": float(probabilities[best])}
