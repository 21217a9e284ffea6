"""The SHA-256 of every file of a source."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mlops.data.decode import cores
from mlops.data.listing import Entry
from mlops.data.tree import Tree
from mlops.progress import bar


def hash_all(tree: Tree, entries: Sequence[Entry]) -> list[str]:
    """The SHA-256 of every file's bytes; empty where it cannot be read, for decoding will say why."""

    def digest(entry: Entry) -> str:
        try:
            return hashlib.sha256(tree.read(entry.path)).hexdigest()
        except OSError:
            return ""

    # Reading and hashing release the interpreter; for small files more threads would only take turns.
    with ThreadPoolExecutor(min(cores(), 8)) as pool, bar("reading", len(entries)) as progress:
        found: list[str] = []
        for start in range(0, len(entries), 1024):
            found += pool.map(digest, entries[start : start + 1024])
            progress.advance(len(found) - start)
    return found
