"""Randomness as a pure function of (seed, epoch, position): no generator's state is ever saved."""

import hashlib


def key(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the stream that `path` names, such as `key(0, "order", epoch)`."""
    text = ":".join(map(str, (seed, *path))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
