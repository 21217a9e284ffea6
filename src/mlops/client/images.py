"""Images from wherever they are, in the order given, in parts that one request holds."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

from mlops.client.answers import Refused
from mlops.errors import MlopsError, one_line
from mlops.files import check_regular

# Of one image, bytes: training takes no larger one either.
MOST_BYTES = 200_000_000

_NO_IMAGE = "is no image; give a path, bytes, or a file opened with mode rb"

# A path, the bytes of a file, or a file opened for reading bytes.
Image: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
Images: TypeAlias = Image | Iterable[Image]


@dataclass(frozen=True)
class Upload:
    """An image ready to be sent; `file` is what its sender calls it."""

    file: str | None
    sent_as: str
    data: bytes


Chunk: TypeAlias = list[Upload | Refused]


def chunks(images: Images, files: int, size: int) -> Iterator[Chunk]:
    """Images, read when their turn comes, at most `files` and `size` bytes together; a larger one is alone."""
    chunk, held = Chunk(), 0
    for number, image in enumerate(_several(images), start=1):
        part = _opened(image, number)
        weight = len(part.data) if isinstance(part, Upload) else 0
        if chunk and (len(chunk) == files or held + weight > size):
            yield chunk
            chunk, held = [], 0
        chunk.append(part)
        held += weight
    if chunk:
        yield chunk


def _several(images: Images) -> Iterable[Image]:
    # An open file would give its lines, and bytes their numbers.
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(images, "read"):
        return [cast(Image, images)]
    if not isinstance(images, Iterable):
        raise MlopsError(f"images: {type(images).__name__} {_NO_IMAGE}")
    return images


def _opened(image: Image, number: int) -> Upload | Refused:
    if isinstance(image, bytes | bytearray | memoryview):
        return Upload(None, f"image-{number}", bytes(image))
    if isinstance(image, str | os.PathLike):
        file: str | None = os.fspath(image)
    else:
        # Of a file that was opened by its descriptor, this is a number.
        name = getattr(image, "name", None)
        file = name if isinstance(name, str) else None
    shown = file or f"image-{number}"
    try:
        if not isinstance(image, str | os.PathLike) and not hasattr(image, "read"):
            raise ValueError(f"{type(image).__name__} {_NO_IMAGE}")
        data = _read(Path(image)) if isinstance(image, str | os.PathLike) else image.read(MOST_BYTES + 1)
        if not isinstance(data, bytes):
            raise ValueError("is open for reading text; open it with mode rb")
        if len(data) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES:,} bytes")
    except MlopsError as error:
        return Refused(file, str(error).removeprefix(f"{shown}: "), error)
    except FileNotFoundError:
        reason = "no such file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
    else:
        # Logs keep names: the folders are nobody's business. Half a surrogate, which a path may hold, is no Unicode.
        return Upload(file, Path(shown).name.encode(errors="replace").decode(), data)
    return Refused(file, reason, MlopsError(f"{shown}: {reason}"))


def _read(path: Path) -> bytes:
    check_regular(path, str(path))
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)
