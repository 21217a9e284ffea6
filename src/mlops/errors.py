"""The one exception for everything that is the user's to mend."""

import re
import sys
from collections.abc import Sequence
from typing import NoReturn

# A file of somebody else's may be wrong in a million places, each of any length.
_MOST_PROBLEMS, _MOST_LETTERS = 50, 1000


class MlopsError(Exception):
    """What, where, the value, what to do. Entrypoints print it, one line a problem, and exit with code 2.

    Takes several problems at once, so that a user mends them all before the next try.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        given = [problems] if isinstance(problems, str) else problems
        self.problems: list[str] = [printable(_cut(_without_password(problem))) for problem in given[:_MOST_PROBLEMS]]
        if len(given) > _MOST_PROBLEMS:
            self.problems.append(f"and {len(given) - _MOST_PROBLEMS} more")
        super().__init__("\n".join(self.problems))


def fail(error: MlopsError) -> NoReturn:
    """How an entrypoint ends after a mistake of the user's: one line a problem on standard error, and exit code 2."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2) from None


def _without_password(text: str) -> str:
    """`text` with the passwords of its URLs hidden, to the last @: one may stand in a password."""
    return re.sub(r"(://[^:/\s@]*:)\S*@", r"\1***@", text)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def printable(text: str) -> str:
    """`text` with control characters escaped: names out of files and archives must not steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def one_line(error: BaseException) -> str:
    """The message of any exception on one line, for use inside a problem."""
    return " ".join(str(error).split()) or type(error).__name__


def shorten(values: Sequence[str], limit: int = 3) -> str:
    """`a, b, c and 12 more`: enough of a list to recognise it by."""
    shown = ", ".join(values[:limit])
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"
