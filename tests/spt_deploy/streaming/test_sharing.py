"""Threads that take work from one stock and hand results on: all of it once, in order, whatever fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.streaming.flow import Flow
from spt_deploy.streaming.sharing import InOrder, Stock


class Numbers:
    """Makes numbers from 0 on, and knows whether two threads were ever at it together."""

    def __init__(self, count: int, seconds: float = 0.0) -> None:
        self.made = 0
        self.collided = False
        self._count, self._seconds = count, seconds
        self._at_it = threading.Lock()

    def __call__(self) -> int | None:
        if not self._at_it.acquire(blocking=False):
            self.collided = True
            return None
        with_this = self.made
        time.sleep(self._seconds)
        if with_this < self._count:
            self.made += 1
        self._at_it.release()
        return with_this if with_this < self._count else None


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.001)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 120), st.integers(1, 4), st.integers(1, 4))
def test_each_item_is_made_by_one_thread_and_handed_on_once_and_in_order(items: int, threads: int, ahead: int) -> None:
    before = set(threading.enumerate())
    numbers, arrived = Numbers(items), []
    with Flow() as flow:
        stock: Stock[int] = Stock(flow, numbers, ahead)
        in_order: InOrder[int] = InOrder(flow, arrived.append, threads)

        def work() -> None:
            while (number := stock.take()) is not None:
                time.sleep(0.001 if number % 5 == 0 else 0)  # these are overtaken
                in_order.put(number, number)

        for _ in range(threads - 1):
            flow.spawn("work", work)
        work()
    assert arrived == list(range(items))
    assert not numbers.collided
    assert set(threading.enumerate()) <= before


def test_no_more_is_made_ahead_than_was_said() -> None:
    numbers = Numbers(100)
    with Flow() as flow:
        stock: Stock[int] = Stock(flow, numbers, 3)
        assert stock.take() == 0
        assert numbers.made == 3
        assert stock.take() == 1
        assert numbers.made == 4


def test_who_finds_something_made_does_not_wait_for_who_makes_more() -> None:
    begun, go_on = threading.Event(), threading.Event()
    made = iter(range(100))

    def make() -> int:
        number = next(made)
        if number == 2:
            begun.set()
            go_on.wait(5)
        return number

    with Flow() as flow:
        stock: Stock[int] = Stock(flow, make, 2)
        assert stock.take() == 0  # and 1 lies there
        flow.spawn("maker", stock.take)  # type: ignore[arg-type]
        begun.wait(5)
        assert stock.take() == 1
        assert not go_on.is_set()
        go_on.set()


def test_it_says_when_somebody_waits_for_what_is_being_made() -> None:
    awaited: list[bool] = []
    with Flow() as flow:

        def make() -> int:
            wait_until(lambda: bool(awaited) or stock.is_awaited)
            awaited.append(stock.is_awaited)
            return 7

        stock: Stock[int] = Stock(flow, make, 1)
        flow.spawn("another", stock.take)  # type: ignore[arg-type]
        stock.take()
    assert awaited[0]


@pytest.mark.parametrize("place", ["making", "working", "handing on"])
@pytest.mark.parametrize("where", ["caller", "thread"])
def test_an_error_anywhere_ends_all_threads_and_is_the_one_that_is_raised(place: str, where: str) -> None:
    def fail_at(this: str, number: int) -> None:
        here = "caller" if threading.current_thread() is threading.main_thread() else "thread"
        if this == place and here == where and number >= 5:
            raise ZeroDivisionError(this)

    def run() -> None:
        made = iter(range(100_000))

        def make() -> int:
            fail_at("making", 9)
            return next(made)

        with Flow() as flow:
            stock: Stock[int] = Stock(flow, make, 2)
            in_order: InOrder[int] = InOrder(flow, lambda number: fail_at("handing on", number), 3)

            def work() -> None:
                while (number := stock.take()) is not None:
                    fail_at("working", number)
                    time.sleep(0.0005)
                    in_order.put(number, number)

            for _ in range(2):
                flow.spawn("work", work)
            work()

    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError, match=place):
        run()
    assert set(threading.enumerate()) <= before


def test_who_is_far_ahead_of_the_others_waits_for_them() -> None:
    ahead: list[int] = []
    arrived: list[int] = []
    with Flow() as flow:
        in_order: InOrder[int] = InOrder(flow, arrived.append, 2)

        def hurry() -> None:
            for number in (1, 2, 3):
                in_order.put(number, 10 + number)
                ahead.append(number)

        flow.spawn("hurry", hurry)
        wait_until(lambda: bool(ahead))
        time.sleep(0.05)
        assert ahead == [1]
        assert arrived == []
        in_order.put(0, 10)
    assert arrived == [10, 11, 12, 13]


def test_who_brings_a_result_while_another_hands_on_does_not_wait() -> None:
    begun, go_on = threading.Event(), threading.Event()
    arrived: list[tuple[int, str]] = []

    def hand_on(number: int) -> None:
        if number == 0:
            begun.set()
            go_on.wait(5)
        arrived.append((number, threading.current_thread().name))

    with Flow() as flow:
        in_order: InOrder[int] = InOrder(flow, hand_on, 2)
        flow.spawn("first", lambda: in_order.put(0, 0))
        begun.wait(5)
        in_order.put(1, 1)
        assert arrived == []
        go_on.set()
    assert arrived == [(0, "first"), (1, "first")]


def test_who_waits_for_one_that_fails_ends_too() -> None:
    def run() -> None:
        with Flow() as flow:
            in_order: InOrder[int] = InOrder(flow, lambda _: None, 2)
            flow.spawn("ahead", lambda: in_order.put(2, 12))
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        run()
    assert set(threading.enumerate()) <= before
