"""Parts of weights from the thread that is handed them to the one that loads them, one after the other. Without Ray."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any


class Feed:
    """Iterated by the loading thread; asking for the next item says that the one before is loaded.

    `opened` is set when the first is asked for, which may come after `first_s`: others have work to finish. From then on either
    side waits at most `timeout_s` for the other.
    """

    def __init__(self, version: int, timeout_s: float, first_s: float):
        self.version, self.timeout_s, self.first_s = version, timeout_s, first_s
        self.items: queue.Queue[tuple[Any, Future] | None] = queue.Queue()
        self.opened = threading.Event()
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        """Raises TimeoutError when the next item does not come."""
        self.opened.set()
        while (found := self._next()) is not None:
            item, loaded = found
            yield item
            loaded.set_result(None)

    def put(self, item: Any, loading: Future) -> None:
        """Returns when the item is loaded. `loading` is the whole load: its error is raised here, too."""
        loaded: Future = Future()
        self.items.put((item, loaded))
        self.count += 1
        done, _ = wait([loaded, loading], self.timeout_s, FIRST_COMPLETED)
        if not done:
            raise TimeoutError(f"{self._limit()}: part {self.count - 1} of weights {self.version} did not load")
        if loading in done and not loaded.done():
            loading.result()
            raise RuntimeError(f"weights {self.version} were ended before part {self.count - 1}")

    def close(self) -> None:
        """No more items."""
        self.items.put(None)

    def _next(self) -> tuple[Any, Future] | None:
        try:
            return self.items.get(timeout=self.timeout_s if self.count else self.first_s)
        except queue.Empty:
            limit = self._limit() if self.count else f"rollout.timeout_s={self.first_s:g}"
            raise TimeoutError(f"{limit}: waited for part {self.count} of weights {self.version}") from None

    def _limit(self) -> str:
        return f"learner.transfer_timeout_s={self.timeout_s:g}"
