"""Pictures of anybody's -> the likeliest class of each, as a server of `mlops serve` tells it. No torch."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlops.client import Client, Prediction, Refused
from mlops.data.tree import FolderTree
from mlops.errors import MlopsError, one_line
from mlops.evaluation import predict
from mlops.image import EXTENSIONS
from mlops.progress import bar

# A longer line is no key, but some other file.
_LONGEST_KEY = 4096


def predict_served(
    url: str, images: Sequence[Path], model: str | None = None, key: str | None = None
) -> tuple[list[predict.Prediction], list[tuple[str, str]]]:
    """The predictions for image files and for those in folders, and (path, reason) of what could not be read.

    Images are sent as they are stored; the server prepares them by the code that training used.

    Raises:
        MlopsError: the URL is none, the server is not reached, or it refuses for another reason than an image.
    """
    found = [*_search(images)]
    predictions: list[predict.Prediction] = []
    unreadable: list[tuple[str, str]] = []
    with Client(url, key) as client, bar("predicting", len(found)) as progress:
        told = client.each((path for path, reason in found if reason is None), model)
        for path, reason in found:
            answer: Prediction | Refused | None = next(told) if reason is None else None
            progress.advance(1)
            if isinstance(answer, Prediction):
                predictions.append(predict.Prediction(str(path), answer.label, answer.probability))
            else:
                unreadable.append((str(path), answer.reason if answer is not None else str(reason)))
    return predictions, unreadable


def key_of(file: Path | None) -> str | None:
    """The API key: the one line of `file`, else that of the environment, MLOPS_API_KEY; None where there is none.

    Raises:
        MlopsError: the file cannot be read, or holds something else.
    """
    if file is None:
        return os.environ.get("MLOPS_API_KEY") or None
    try:
        with file.open(encoding="utf-8") as opened:
            key = opened.read(_LONGEST_KEY).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise MlopsError(f"--key-file={file}: cannot be read: {reason}") from None
    if not key or len(key.split()) > 1 or len(key) >= _LONGEST_KEY - 1:
        raise MlopsError(f"--key-file={file}: must hold one key on one line")
    return key


def _search(images: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Every image file, or what cannot be searched and why; as images are found for a model on this machine."""
    for path in images:
        try:
            if not path.is_dir():
                path.stat()
                yield path, None
                continue
            inside = [name for name in FolderTree(path).names if name.lower().endswith(EXTENSIONS)]
            if not inside:
                raise MlopsError("folder without images")
        except (OSError, MlopsError) as error:
            yield path, "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
            continue
        yield from ((path / name, None) for name in inside)
