"""The thread that makes batches ahead: their order, its errors, its end."""

import threading
import weakref

import pytest
from waiting import LONG_S, wait_until

from softshard.loaders.background import Background
from softshard.shards.errors import UsageError


def test_items_come_in_order_and_the_end_is_none():
    background = Background(lambda: iter(range(20)), ahead=3)
    background.start()
    assert [background.next() for _ in range(21)] == [*range(20), None]
    background.stop()


def test_what_the_thread_dies_of_is_raised_after_the_items_before_it():
    def numbers():
        yield 1
        raise OSError("the disk is gone")

    background = Background(numbers, ahead=3)
    background.start()
    assert background.next() == 1
    with pytest.raises(OSError, match="the disk is gone"):
        background.next()
    background.stop()


def test_asking_once_more_after_the_end_is_an_error_and_no_hang(within):
    background = Background(lambda: iter(()), ahead=1)
    background.start()
    assert background.next() is None
    with pytest.raises(RuntimeError, match="has ended without a word"):
        within(background.next)
    background.stop()


def test_stop_closes_the_iterator_in_its_own_thread(within):
    closed_in = []

    def numbers():
        try:
            while True:
                yield 0
        finally:
            closed_in.append(threading.current_thread().name)

    background = Background(numbers, ahead=2)
    background.start()
    assert background.next() == 0
    within(background.stop)
    assert closed_in == ["softshard-loader"]
    assert background.stopped


@pytest.mark.parametrize("num_items", [2, 99], ids=["after its end", "before its end"])
def test_a_thread_that_is_not_waited_for_leaves_nothing(within, num_items):
    class Item:
        """Can be referred to weakly."""

    made = weakref.WeakSet()

    def items():
        for _ in range(num_items):
            item = Item()
            made.add(item)
            yield item

    def begin_and_stop():
        background = Background(items, ahead=3)
        background.start()
        if num_items == 2:
            wait_until(lambda: not background._thread.is_alive())
        else:
            wait_until(lambda: background.depth == 3)
        with background._ready.mutex:  # as where garbage is collected in the middle of `depth`
            within(lambda: background.stop(wait=False))
        assert background.depth == 0
        return weakref.ref(background._thread)

    thread = begin_and_stop()
    wait_until(lambda: thread() is None and not made)


def test_a_thread_that_stops_itself_does_not_wait_for_itself(within):
    """Garbage is collected in any thread, and with it a generator that closes its loader at its end."""
    built, returned = threading.Event(), threading.Event()

    def numbers():
        assert built.wait(LONG_S)
        background.stop()
        returned.set()
        yield 1

    background = Background(numbers, ahead=1)
    background.start()
    built.set()
    with pytest.raises(UsageError, match="found this one continued after another"):
        within(background.next)
    assert returned.is_set()


def test_a_thread_that_never_began_is_stopped_at_once(within):
    """Ctrl-C may come before it does."""
    began = []
    background = Background(lambda: began.append(1) or iter(()), ahead=1)
    within(background.stop)
    background.start()
    background._thread.join(LONG_S)
    assert not began


def test_a_loop_that_waits_while_another_thread_stops_it_is_told_so(within):
    begun, let_go = threading.Event(), threading.Event()

    def numbers():
        begun.set()
        let_go.wait(LONG_S)
        yield from ()

    background = Background(numbers, ahead=1, interrupt=let_go.set)
    background.start()
    assert begun.wait(LONG_S)
    stopper = threading.Timer(0.1, background.stop)  # by then this thread waits, or is about to
    stopper.start()
    with pytest.raises(UsageError, match=r"found this one continued after another began, .* or close"):
        within(background.next)
    stopper.join(LONG_S)
