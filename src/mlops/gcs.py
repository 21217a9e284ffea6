"""What gcsfs has to be told to be quiet, bounded and safe, and what its exceptions mean.

Their messages are not passed on: they hold addresses that let others write.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from mlops.deadline import begin

T = TypeVar("T")

# Seconds for one request to GCS, of which gcsfs makes up to six. aiohttp's own would wait 30 s for each connection.
REQUEST_TIMEOUT = {"total": 300, "sock_connect": 10, "sock_read": 60}

LOG_IN = "log in with `gcloud auth application-default login`, or name a key file in GOOGLE_APPLICATION_CREDENTIALS"
_FORBIDDEN = "not allowed; this account has to read, write and replace there (GCS: the role Storage Object User)"


class _LeftBehind(ThreadPoolExecutor):
    """Threads that nothing waits for.

    asyncio looks up names in a pool of threads, for which the interpreter waits at its end: without a network, for as
    long as the system's resolver likes.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **named: Any) -> Future[T]:
        return begin(lambda: fn(*args, **named))


def options() -> dict[str, Any]:
    """For a file system of fsspec's `gs`; imports gcsfs's network library."""
    # Its support for two rarer kinds of bucket asks another, gRPC interface first, which nothing bounds.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if "GCSFS_DEBUG" not in os.environ:
        # It logs a traceback for every request that fails; what a person needs is our one line.
        logger = logging.getLogger("gcsfs")
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    import aiohttp
    from fsspec.asyn import get_loop

    loop = get_loop()
    loop.call_soon_threadsafe(loop.set_default_executor, _LeftBehind())
    return {
        # An emulator needs no credentials and should be sent none.
        "token": "anon" if os.environ.get("STORAGE_EMULATOR_HOST", "default") not in {"", "default"} else None,
        "use_listings_cache": False,
        "requests_timeout": aiohttp.ClientTimeout(**REQUEST_TIMEOUT),
    }


def reason(error: Exception) -> str:
    """Why a call failed, in our words."""
    code, kind, module = str(getattr(error, "code", "")), type(error).__name__, type(error).__module__.split(".")[0]
    reasons = [
        (code == "401" or kind == "NonRetryableError", f"no valid credentials; {LOG_IN}"),
        (module == "google" and kind != "TransportError", f"no valid credentials; {LOG_IN}"),
        (code == "403" or isinstance(error, PermissionError) or str(error).startswith("Forbidden"), _FORBIDDEN),
        (isinstance(error, FileNotFoundError), "there is no such bucket or folder"),
        (kind == "ChecksumError", "what arrived is not what was sent"),
        (code.isdigit(), f"the server answers {code}"),
        (isinstance(error, TimeoutError) or module in {"aiohttp", "requests", "google"}, "cannot be reached"),
        (isinstance(error, OSError) and error.strerror is not None, getattr(error, "strerror", "")),
    ]
    return next((words for holds, words in reasons if holds), f"fails with {kind}")
