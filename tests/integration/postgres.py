"""A PostgreSQL server of one test's own, from the programs that Debian's package installs."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

USER, PASSWORD = "sweeper", "s3cr3t-of-the-server"
PATIENCE = 60.0


class Server:
    """A context in which a server runs on a port of its own; `skips` the test where none can be started."""

    def __enter__(self) -> Self:
        self._bin = programs()
        self._as = _other_user()
        self._folder = Path(tempfile.mkdtemp(prefix="mlops-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown, which takes its own processes along
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)

    def database(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"d{secrets.token_hex(4)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self._port}/{name}"

    def _start(self) -> None:
        import pwd

        import psycopg

        data, password, log = self._folder / "data", self._folder / "password", self._folder / "log"
        password.write_text(PASSWORD)
        if self._as:
            account = pwd.getpwnam(self._as["user"])
            for path in (self._folder, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        init = [
            self._bin / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            "--pwfile",
            password,
            "-N",
            "-E",
            "UTF8",
        ]
        done = subprocess.run(init, capture_output=True, text=True, cwd="/", timeout=PATIENCE, check=False, **self._as)
        if done.returncode:
            pytest.skip(f"initdb does not run here: {done.stderr.strip().splitlines()[-1]}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        settings = {"listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": "", "fsync": "off"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", data, *options],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                **self._as,
            )
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(self._url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    lines = log.read_text().strip().splitlines() or ["no word about why"]
                    pytest.skip(f"postgres does not start here: {lines[-1]}")
                time.sleep(0.05)


def programs() -> Path:
    """The folder of `initdb` and `postgres`, the newest where there are several."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4), reverse=True
    )
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    pytest.skip("no PostgreSQL here: apt install postgresql")


def _other_user() -> dict[str, Any]:
    """What starts a program as somebody else, where we are root, which PostgreSQL refuses to run as."""
    if os.geteuid() != 0:
        return {}
    import pwd  # not on Windows

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": name, "group": account.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
