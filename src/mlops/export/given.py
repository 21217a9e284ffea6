"""The images of a folder or archive that the user names with --data. No torch."""

from pathlib import Path

import numpy as np

from mlops.data.decode import Geometry, Unreadable, decode_all
from mlops.data.tree import open_tree
from mlops.errors import MlopsError
from mlops.export.parity import Files
from mlops.image import EXTENSIONS, Pixels
from mlops.progress import bar

# Labelled images to score on. An accuracy of so many is known to a tenth of a point; at 224 pixels they fill 750 MB.
MOST_SCORED = 5000


def find_given(data: Path) -> Files:
    """All of them.

    Raises:
        MlopsError: there are none.
    """
    tree = open_tree(data, "--data")
    names = [name for name in tree.names if name.lower().endswith(EXTENSIONS)]
    if not names:
        raise MlopsError(f"--data={data}: holds no images")
    return Files("given images", tree, names)


def read_given(files: Files, size: Geometry) -> Pixels:
    """Them at the native size, uint8 `[N, height, width, 3]`.

    Raises:
        MlopsError: with all that cannot be read.
    """
    pixels, problems = list[Pixels](), list[str]()
    with bar("reading", len(files.names)) as progress:
        for name, result in zip(files.names, decode_all(files.tree, files.names, size, workers=0), strict=True):
            progress.advance(1)
            if isinstance(result, Unreadable):
                problems.append(f"{files.tree.label}/{name}: {result.reason}; mend or remove it")
            else:
                pixels.append(result.pixels)
    if problems:
        raise MlopsError(problems)
    return np.stack(pixels)
