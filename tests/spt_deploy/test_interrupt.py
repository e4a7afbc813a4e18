"""Signals as requests: the first asks, its echo is no second one, and a second one does not wait."""

from __future__ import annotations

import signal
import time

import pytest

from spt_deploy.interrupt import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_its_echo_changes_nothing_and_a_later_one_interrupts(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with stop_on_signals() as stop:
        signal.raise_signal(number)
        now = 100.01
        signal.raise_signal(number)  # as GNU timeout does, to the process and to its group
        assert stop.signal_number == number
        now = 101.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_signal_after_a_key_in_a_window_is_a_second_one() -> None:
    with stop_on_signals() as stop:
        stop.make()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
