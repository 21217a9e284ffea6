"""The database of a sweep: reached by its URL, waited for, and spoken of without its password."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from mlops.errors import MlopsError, one_line

log = logging.getLogger(__name__)
T = TypeVar("T")

# One that does not answer for so long, in all, ends the sweep; its trials can go on later.
PATIENCE = (1.0, 2.0, 4.0, 8.0)
# Seconds that SQLite waits for another program's lock.
SQLITE_WAIT = 15.0


def together(connect: Callable[[], T]) -> T:
    """`connect`, again where another machine has made the tables of a new database at the same moment."""
    for pause in (0.5, 1.0, 2.0):
        try:
            return connect()
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
            if not any(word in str(cause).lower() for word in ("already exists", "duplicate key", "unique constraint")):
                raise
        time.sleep(pause)
    return connect()


def patiently(call: Callable[[], T], label: str, pauses: Sequence[float] = PATIENCE) -> T:
    """What `call` returns, tried again after each of `pauses` (seconds) while the database is away for a moment.

    Raises:
        MlopsError: it is away for longer, locked, damaged, or no database at all.
    """
    for pause in (*pauses, None):
        try:
            return call()
        except UpdateFinishedTrialError:  # to Python a RuntimeError, and to us an answer
            raise
        except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "schema" not in str(error):
                raise  # Optuna's own is about the tables of another version
            cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
            away = isinstance(cause, OperationalError) and "locked" not in str(cause.orig)
            if pause is None or not away or (isinstance(cause, DBAPIError) and _for_good(cause)):
                raise _refusal(cause, label) from None
            log.warning(f"{label}: does not answer ({_said(cause)}); trying again in {pause:.0f} s")
        time.sleep(pause)
    raise AssertionError


def _for_good(error: DBAPIError) -> bool:
    """Whether waiting helps nobody: a wrong password or name, a file that cannot be opened."""
    words = ("unable to open", "password", "does not exist", "authentication", "could not translate", "not known")
    return any(word in str(error.orig).lower() for word in words)


def _refusal(error: BaseException, label: str) -> MlopsError:
    said = _said(error)
    if isinstance(error, ImportError):
        # Optuna has one of its own around it.
        error = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        driver = {"psycopg": "'psycopg[binary]'"}.get(error.name or "", error.name)
        return MlopsError(f"{label}: needs the package {error.name}; install it: uv pip install {driver}")
    if "locked" in said:
        return MlopsError(
            f"{label}: is locked by another program ({said}); end that one, or name another sweep.storage"
        )
    if any(word in said for word in ("not a database", "malformed", "disk image", "no such table", "compatible")):
        return MlopsError(f"{label}: is damaged, or of other software ({said}); move it away, or name another sweep")
    return MlopsError(f"{label}: cannot be used ({said}); the trials so far are kept, start the sweep again later")


def _said(error: BaseException) -> str:
    """What the database said; SQLAlchemy's own words hold the statement and its values."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return one_line(original)[:300]


def address(storage: str | None, folder: Path) -> tuple[sqlalchemy.URL, str]:
    """Where the database is, and how that is written without its password."""
    if storage is None:
        path = folder / "study.db"
        return sqlalchemy.URL.create("sqlite", database=str(path.absolute())), str(path)
    try:
        url = sqlalchemy.make_url(storage)
        url.get_backend_name()
        url.get_dialect()
    except ModuleNotFoundError as error:
        raise _refusal(error, "sweep.storage") from None
    except (SQLAlchemyError, ValueError):
        raise MlopsError(
            "sweep.storage: is not the URL of a database; it is sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME "
            "(it is not shown here, for it may hold a password)"
        ) from None
    if "@" in (url.host or ""):
        raise MlopsError("sweep.storage: its password has an @, which is written %40 (it is not shown here)")
    # Drivers take a password in the query, too.
    return url, url.set(query={}).render_as_string(hide_password=True)
