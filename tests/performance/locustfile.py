"""Load on a running `mlops serve`: people who send pictures, mostly one at a time. A wrong answer is a failure.

Ten users for a minute, then fifty for another, in one run, with a page of results:

    LOAD_SHAPE=TenThenFifty uv run locust -f tests/performance/locustfile.py --headless --html load.html

The same in two runs; or without --headless, by hand, on http://localhost:8089:

    uv run locust -f tests/performance/locustfile.py --headless -u 10 -r 10 -t 1m --html load-10.html
    uv run locust -f tests/performance/locustfile.py --headless -u 50 -r 10 -t 1m --html load-50.html

The exit code is 1 if any request failed. Read from the environment:

    TARGET_HOST     where the server is, http://127.0.0.1:8000 when not set (--host goes before it)
    IMAGES_FOLDER   a folder of pictures to send; noise of about 50 pixels a side when not set
    MLOPS_API_KEY   a key of the server's API
    WAIT_SECONDS    how long a user rests between two requests, on average: 1 when not set, 0 for as fast as it goes
    LOAD_SHAPE      TenThenFifty, or not set: then -u, -r and -t are obeyed
"""

import io
import os
import random
from pathlib import Path
from typing import Any, ClassVar

from locust import FastHttpUser, LoadTestShape, between, tag, task
from PIL import Image
from urllib3 import encode_multipart_formdata

# Of a folder, no more are kept in memory.
MOST_IMAGES = 200
SEVERAL = 5
EXTENSIONS = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
WAIT = float(os.environ.get("WAIT_SECONDS", "1"))


def images() -> list[tuple[str, bytes]]:
    """Name and bytes of what is sent."""
    if folder := os.environ.get("IMAGES_FOLDER"):
        paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not paths:
            raise SystemExit(f"IMAGES_FOLDER={folder}: holds no images")
        # Spread over the whole folder: its first images may all be of one class.
        return [(path.name, path.read_bytes()) for path in paths[:: -(-len(paths) // MOST_IMAGES)]]
    made, chance = [], random.Random(0)
    for number in range(20):
        size = chance.randint(45, 55), chance.randint(45, 55)
        file = io.BytesIO()
        Image.frombytes("RGB", size, chance.randbytes(size[0] * size[1] * 3)).save(file, format="PNG")
        made.append((f"noise-{number}.png", file.getvalue()))
    return made


def encoded(parts: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """The body and the content type of a request with these images."""
    return encode_multipart_formdata([("file", (name, data, "application/octet-stream")) for name, data in parts])


# Made once: what is measured is the server, not how fast requests are put together.
IMAGES = images()
SINGLE = [encoded([image]) for image in IMAGES]
TOGETHER = [encoded([IMAGES[(start + more) % len(IMAGES)] for more in range(SEVERAL)]) for start in range(len(IMAGES))]


def problem(status: int, told: Any, count: int) -> str | None:
    """What is wrong with an answer to `count` images, or None."""
    if status != 200:
        detail = told.get("detail") if isinstance(told, dict) else None
        return f"{status}: {detail}" if detail else f"{status}"
    found = told.get("predictions") if isinstance(told, dict) else None
    if not isinstance(found, list) or len(found) != count:
        return f"not {count} predictions"
    for one in found:
        label, chance, top = (
            (one.get(key) for key in ("class", "probability", "top")) if isinstance(one, dict) else [0] * 3
        )
        if not isinstance(label, str) or not isinstance(chance, float | int) or not 0 <= chance <= 1:
            return "a prediction without a class and a probability from 0 to 1"
        if not isinstance(top, list) or not top or top[0].get("class") != label:
            return "a prediction whose class is not the first of its top"
    return None


class Person(FastHttpUser):
    """Sends one picture mostly, several now and then, and asks whether the server is well."""

    host = os.environ.get("TARGET_HOST", "http://127.0.0.1:8000")
    wait_time = between(WAIT / 2, WAIT * 1.5)
    key: ClassVar[dict[str, str]] = (
        {"Authorization": f"Bearer {os.environ['MLOPS_API_KEY']}"} if os.environ.get("MLOPS_API_KEY") else {}
    )

    @tag("predict")
    @task(16)
    def one_image(self) -> None:
        self._send(*random.choice(SINGLE), count=1, name="/predict (1 image)")

    @tag("predict")
    @task(3)
    def several_images(self) -> None:
        self._send(*random.choice(TOGETHER), count=SEVERAL, name=f"/predict ({SEVERAL} images)")

    @tag("health")
    @task(1)
    def health(self) -> None:
        with self.client.get("/health", catch_response=True) as response:
            if response.status_code != 200 or told(response) != {"status": "ok"}:
                response.failure(f"{response.status_code}: not well")

    def _send(self, body: bytes, kind: str, count: int, name: str) -> None:
        headers = {"Content-Type": kind, **self.key}
        with self.client.post("/predict", data=body, headers=headers, name=name, catch_response=True) as response:
            # Nobody answered: locust has counted that itself, and says why.
            if response.status_code and (wrong := problem(response.status_code, told(response), count)):
                response.failure(wrong)


def told(response: Any) -> Any:
    """The JSON of an answer, or None."""
    try:
        return response.json()
    except (ValueError, TypeError):
        return None


class TenThenFifty(LoadTestShape):
    """Ten users for a minute, fifty for another, and the end."""

    abstract = os.environ.get("LOAD_SHAPE") != "TenThenFifty"

    def tick(self) -> tuple[int, float] | None:
        """How many users there are now, and how many of them start in a second; None ends the run."""
        seconds = self.get_run_time()
        if seconds >= 120:
            return None
        return (10, 10) if seconds < 60 else (50, 10)
