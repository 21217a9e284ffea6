"""What a worker does with what its supervisor says."""

import asyncio
import io
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops.serving.settings import Settings
from mlops.serving.worker import Worker
from mlops.serving.worker_start import Start


class Shelf:
    """Loads a file when it is told that it may."""

    def __init__(self) -> None:
        self.may = {name: asyncio.Event() for name in ("first", "second", "other")}
        self.done: list[tuple[str, str | None]] = []
        self.fails = False

    async def load(self, name: str, path: Path, sha256: str) -> str | None:
        await self.may[path.name].wait()
        if self.fails:
            raise MemoryError
        self.done.append((name, path.name))
        return "it is bad" if sha256 == "bad" else None

    def refuse(self, name: str, reason: str | None) -> None:
        self.done.append((name, reason))


class Setting:
    """A worker without a server."""

    def __init__(self, folder: Path) -> None:
        self.shelf, self.answers = Shelf(), io.StringIO()
        self.server, self.gate = SimpleNamespace(should_exit=False), SimpleNamespace(draining=False)
        start = Start(Settings(drain_seconds=0.01), "127.0.0.1", 0, folder)
        parts: Any = self.server, self.shelf, self.gate
        self.worker = Worker(start, *parts, self.answers)

    def load(self, name: str, file: str, sha256: str = "good") -> None:
        self.worker.hear({"do": "load", "name": name, "path": f"/snapshots/{file}", "sha256": sha256})

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.answers.getvalue().splitlines()]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_one_file_is_loaded_after_the_other_so_that_the_last_one_wins(tmp_path: Path):
    async def test() -> None:
        setting = Setting(tmp_path)
        setting.load("m", "first")
        setting.load("m", "second")
        setting.worker.hear({"do": "refuse", "name": "m", "reason": "a third one is bad"})
        setting.load("n", "other")
        setting.shelf.may["second"].set()
        setting.shelf.may["other"].set()
        await settled()
        # Two at the same time may not fit the memory, and which of them ended the process would not be known.
        assert setting.shelf.done == []
        assert setting.told() == [{"loading": "/snapshots/first"}]
        setting.shelf.may["first"].set()
        await settled()
        assert setting.shelf.done == [("m", "first"), ("m", "second"), ("m", "a third one is bad"), ("n", "other")]
        assert [one.get("loading") or one["path"] for one in setting.told()] == [
            f"/snapshots/{name}" for name in ("first", "first", "second", "second", "other", "other")
        ]

    run(test)


def test_a_model_that_is_refused_is_told_of_with_its_reason(tmp_path: Path):
    async def test() -> None:
        setting = Setting(tmp_path)
        setting.shelf.may["first"].set()
        setting.load("m", "first", "bad")
        await settled()
        assert setting.told() == [
            {"loading": "/snapshots/first"},
            {"loaded": "m", "path": "/snapshots/first", "sha256": "bad", "refused": "it is bad"},
        ]

    run(test)


def test_a_fault_while_loading_is_a_refusal_too(tmp_path: Path):
    async def test() -> None:
        setting = Setting(tmp_path)
        setting.shelf.fails = True
        setting.shelf.may["first"].set()
        setting.load("m", "first")
        await settled()
        _, told = setting.told()
        assert told["refused"] == "cannot be loaded: MemoryError"
        assert setting.shelf.done == [("m", "cannot be loaded: MemoryError")]

    run(test)


@pytest.mark.parametrize("word", [{"do": "drain"}, None])
def test_it_drains_when_told_and_when_its_supervisor_is_gone(word: dict[str, Any] | None, tmp_path: Path):
    async def test() -> None:
        setting = Setting(tmp_path)
        setting.worker.hear(word)
        await settled()
        assert setting.gate.draining
        assert not setting.server.should_exit
        await asyncio.sleep(0.1)
        assert setting.server.should_exit

    run(test)


def test_a_supervisor_that_is_gone_is_no_fault(tmp_path: Path):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    setting = Setting(tmp_path)
    setting.worker._answers = Broken()
    setting.worker.tell({"listening": 1})
