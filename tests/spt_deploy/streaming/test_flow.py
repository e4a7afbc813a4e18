"""Threads joined by queues: nothing lost, nothing reordered, nothing left over, whatever fails."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.streaming.flow import Cancelled, Empty, Flow


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 4))
def test_items_arrive_whole_and_in_order_through_any_number_of_stages(items: int, size: int, stages: int) -> None:
    arrived: list[int] = []
    before = set(threading.enumerate())
    with Flow() as flow:
        channels = [flow.channel(int, size) for _ in range(stages + 1)]

        def feed() -> None:
            for number in range(1, items + 1):
                channels[0].put(number)
            channels[0].close()

        def pass_on(index: int) -> None:
            for item in channels[index]:
                channels[index + 1].put(item)
            channels[index + 1].close()

        flow.spawn("feed", feed)
        for index in range(stages):
            flow.spawn(f"stage {index}", lambda index=index: pass_on(index))  # type: ignore[misc]
        arrived.extend(channels[-1])
    assert arrived == list(range(1, items + 1))
    assert set(threading.enumerate()) <= before


def test_a_full_channel_holds_the_feeder_back() -> None:
    put: list[int] = []
    with Flow() as flow:
        channel = flow.channel(int, 3)

        def feed() -> None:
            for number in range(1, 11):
                channel.put(number)
                put.append(number)
            channel.close()

        flow.spawn("feed", feed)
        deadline = time.monotonic() + 5
        while len(put) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert put == [1, 2, 3]
        assert list(channel) == list(range(1, 11))


@pytest.mark.parametrize("place", ["first", "middle", "last", "caller"])
def test_the_first_error_anywhere_stops_everything_and_is_the_one_that_is_raised(place: str) -> None:
    before = set(threading.enumerate())

    def fail_at(where: str, number: int) -> None:
        if where == place and number == 5:
            raise ZeroDivisionError(where)

    def run() -> None:
        with Flow() as flow:
            first, second, third = (flow.channel(int, 2) for _ in range(3))

            def feed() -> None:
                for number in range(1, 10_000):
                    fail_at("first", number)
                    first.put(number)
                first.close()

            def middle() -> None:
                for number in first:
                    fail_at("middle", number)
                    second.put(number)
                second.close()

            def last() -> None:
                for number in second:
                    fail_at("last", number)
                    third.put(number)
                third.close()

            for work in (feed, middle, last):
                flow.spawn(work.__name__, work)
            for number in third:
                fail_at("caller", number)

    with pytest.raises(ZeroDivisionError, match=place):
        run()
    assert set(threading.enumerate()) <= before


def test_the_error_keeps_its_traceback() -> None:
    def culprit() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError) as caught, Flow() as flow:
        flow.spawn("culprit", culprit)
    assert "culprit" in [entry.name for entry in caught.traceback]


@pytest.mark.parametrize("waits", [False, True], ids=["caller is done", "caller waits"])
def test_the_error_keeps_what_it_came_from(waits: bool) -> None:
    root, handled = OSError("root"), KeyError("handled")

    def culprit() -> None:
        try:
            raise handled
        except KeyError:
            raise RuntimeError("outer") from root

    def run() -> None:
        with Flow() as flow:
            channel = flow.channel(int, 1)
            flow.spawn("culprit", culprit)
            if waits:
                list(channel)

    with pytest.raises(RuntimeError, match="outer") as caught:
        run()
    assert caught.value.__cause__ is root
    assert caught.value.__context__ is handled


def test_a_channel_that_is_made_after_the_end_keeps_nobody_waiting() -> None:
    """A thread may be about to make one for another source when the caller gives up."""
    heard: list[str] = []

    def run() -> None:
        with Flow() as flow:
            early = flow.channel(int, 1)

            def late() -> None:
                with pytest.raises(Cancelled):
                    early.get()
                try:
                    flow.channel(int, 1).put(1)
                except Cancelled:
                    heard.append("cancelled")

            flow.spawn("late", late)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert heard == ["cancelled"]


def test_a_thread_that_waits_for_room_is_woken_when_the_caller_gives_up() -> None:
    def run() -> None:
        with Flow() as flow:
            channel = flow.channel(int, 1)

            def feed() -> None:
                while True:
                    channel.put(1)

            flow.spawn("feed", feed)
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        run()
    assert set(threading.enumerate()) <= before


def test_where_there_is_no_room_the_oldest_of_a_kind_give_way() -> None:
    with Flow() as flow:
        channel = flow.channel(object, 2)
        gone = [channel.put_newest(item, int) for item in (1, "kept", 2, 3, "kept too", 4)]
        channel.close()
        left = list(channel)
    assert left == ["kept", "kept too", 4]
    assert sum(gone) == 3
    assert channel.poll() is None


def test_polling_does_not_wait() -> None:
    with Flow() as flow:
        channel = flow.channel(int, 2)
        assert channel.poll() is Empty.YET
        assert not channel.is_ready
        channel.put(7)
        assert channel.is_ready
        assert channel.poll() == 7


def test_it_waits_for_its_threads_though_the_waiting_is_interrupted() -> None:
    ended = threading.Event()

    def work() -> None:
        time.sleep(1.2)
        ended.set()

    def interrupt() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    def run() -> None:
        with Flow() as flow:
            flow.spawn("work", work)
            threading.Thread(target=interrupt).start()

    # What a shell starts in the background ignores SIGINT, and so would these tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()


def test_a_thread_that_the_system_refuses_to_start_is_an_error_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def start_unless_refused(thread: threading.Thread) -> None:
        if thread.name == "refused":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless_refused)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with Flow() as flow:
                channel = flow.channel(int, 1)
                flow.spawn("waits", lambda: list(channel))
                flow.spawn("refused", lambda: None)
        except RuntimeError as error:
            errors.append(error)

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    runner.join(timeout=10)
    assert [str(error) for error in errors] == ["can't start new thread"]
