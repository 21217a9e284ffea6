"""All that is wrong, told at once: a call that fails adds to a list, and the next is made."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from mlops.errors import MlopsError

T = TypeVar("T")


class Attempt(Protocol):
    """Calls something with the arguments that follow; None where it raised a MlopsError."""

    def __call__(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T | None: ...


def collecting(problems: list[str]) -> Attempt:
    """An `Attempt` that adds the problems of what fails to `problems`."""

    def attempt(call: Callable[..., T], *arguments: Any, **named: Any) -> T | None:
        try:
            return call(*arguments, **named)
        except MlopsError as error:
            problems.extend(error.problems)
            return None

    return attempt
