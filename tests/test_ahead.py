"""Work ahead in a thread: in order, no more of it than asked for, and at an end when nobody wants it any longer."""

import itertools
import threading
import time

import pytest

from utils.ahead import ahead

# Cuts and repeats


def test_work_ahead_keeps_the_order_and_waits_when_enough_is_ready():
    made = []

    def numbers():
        for i in range(100):
            made.append(i)
            yield i

    iterator = ahead(numbers(), 3)
    assert next(iterator) == 0
    time.sleep(0.1)
    assert len(made) <= 5
    assert list(iterator) == list(range(1, 100))


def test_work_ahead_hands_on_what_was_raised_and_ends_when_closed():
    closed = []

    def failing():
        try:
            yield 1
            raise ValueError("no more")
        finally:
            closed.append("failing")

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append("endless")

    with pytest.raises(ValueError, match="no more"):
        list(ahead(ahead(failing(), 2), 2))
    iterator = ahead(ahead(endless(), 2), 2)
    next(iterator)
    iterator.close()
    assert closed == ["failing", "endless"]


@pytest.mark.parametrize("begun", [True, False])
def test_work_ahead_ends_where_its_start_is_interrupted(monkeypatch, begun):
    """A thread left behind may be inside a library when Python ends, which aborts the process."""
    threads, usual = [], threading.Thread.start

    def interrupted(thread):
        threads.append(thread)
        if begun:
            usual(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(ahead(itertools.count(), 2))
    assert len(threads) == 1 and not threads[0].is_alive()
