"""Resolve all versions anew and pin them: what `invoke lock` runs. `--keep` resolves only what is new.

uv.lock consists of download addresses of one registry and is not committed. The same resolution is written down twice
without addresses: as `[tool.uv] constraint-dependencies` in pyproject.toml, which every `uv sync` obeys, and as
hash-locked requirements/*.txt, for pip and for container files.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
PINS = re.compile(r"(?<=constraint-dependencies = \[\n).*?(?=^\]$)", re.DOTALL | re.MULTILINE)
EXPORTS = {"train": ["--group", "train"], "serve": ["--group", "serve"], "dev": ["--group", "train", "--group", "dev"]}
PLAIN = ["--quiet", "--no-emit-project", "--no-annotate", "--no-header"]
HEADER = "# Made by `invoke lock`; install with: pip install --require-hashes -r requirements/{name}.txt\n"


def uv(*arguments: str) -> str:
    """Run uv in the repository and return what it prints."""
    return subprocess.run(["uv", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def pins(exported: str) -> list[str]:
    """`name==version` or `name==version ; marker` of every package in a requirements file."""
    return [line.split(" \\")[0].strip() for line in exported.splitlines() if re.match(r"[A-Za-z0-9].*==", line)]


def main(keep: bool) -> None:
    """Resolve without the old pins (with them to `keep`), then write the new ones; if it fails, the old ones stand."""
    old = PYPROJECT.read_text(encoding="utf-8")
    try:
        if not keep:
            PYPROJECT.write_text(PINS.sub("", old, count=1), encoding="utf-8")
        uv("lock", "--upgrade")
        everything = uv("export", "--all-groups", "--no-hashes", *PLAIN)
        block = "".join(f'    "{pin}",\n' for pin in pins(everything))
        PYPROJECT.write_text(PINS.sub(lambda _: block, old, count=1), encoding="utf-8")
        uv("lock")
        exports = {name: uv("export", "--no-default-groups", *groups, *PLAIN) for name, groups in EXPORTS.items()}
    except BaseException as error:
        PYPROJECT.write_text(old, encoding="utf-8")
        if isinstance(error, subprocess.CalledProcessError):
            sys.exit(f"error: nothing was changed: {error.stderr.strip()}")
        if isinstance(error, FileNotFoundError):
            sys.exit("error: nothing was changed: uv is not on PATH; pip install uv")
        raise
    for name, text in exports.items():
        (ROOT / "requirements" / f"{name}.txt").write_text(HEADER.format(name=name) + text, encoding="utf-8")
    print(f"pinned {len(pins(everything))} packages in pyproject.toml and requirements/")


if __name__ == "__main__":
    main(keep=sys.argv[1:] == ["--keep"])
