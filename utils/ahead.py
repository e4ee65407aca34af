"""Producing the items of an iterator ahead of their use, in a background thread."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

END = object()


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield the same items, produced in a thread that keeps at most `depth` of them ready.

    An exception raised while producing them is raised here; closing the iterator ends the thread.
    """
    ready: queue.Queue = queue.Queue(depth)
    ended = threading.Event()

    def put(item: object) -> None:
        while not ended.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                pass

    def work() -> None:
        iterator = iter(items)
        try:
            while not ended.is_set():
                put((next(iterator), None))
        except StopIteration:
            put((END, None))
        except BaseException as error:  # whatever it is, the consumer must see it
            put((END, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        ended.set()
        with suppress(RuntimeError):  # its start was interrupted: it has not begun, and will end at once
            thread.join()
