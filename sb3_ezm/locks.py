"""A lock that copies and pickles leave behind."""

from __future__ import annotations

import threading
from typing import Any


class SharedLock:
    """A reentrant lock for an object that is copied or pickled; the copy gets a new lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> Any:
        return SharedLock, ()
