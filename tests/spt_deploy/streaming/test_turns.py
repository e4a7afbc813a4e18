"""Who reads what, in which thread, and that nothing is lost when that changes."""

from __future__ import annotations

import threading

import pytest

from spt_deploy.interrupt import StopRequest
from spt_deploy.streaming.flow import Flow
from spt_deploy.streaming.frames import Frame, Sampling, Source
from spt_deploy.streaming.summary import StageClock, StreamSummary
from spt_deploy.streaming.turns import DECODERS, Turns
from tests.spt_deploy.streaming.support import Recording


def turns_of(flow: Flow, sources: list[Source], stop: StopRequest | None = None, ahead: bool = False) -> Turns:
    summary = StreamSummary()
    return Turns(flow, sources, Sampling(), stop or StopRequest(), StageClock(), summary, ahead=ahead)


def taken(turns: Turns, count: int | None = None) -> list[tuple[str, int]]:
    """The frames of so many turns, or of all that are left."""
    found = []
    while (count is None or len(found) < count) and (turn := turns.take()) is not None:
        if isinstance(turn.item, Frame):
            found.append((turn.item.source, turn.item.index))
    return found


def test_who_takes_reads_until_threads_read_ahead_and_no_frame_is_lost_between() -> None:
    sources: list[Source] = [Recording("a"), Recording("b")]
    here = threading.current_thread().name
    with Flow() as flow:
        turns = turns_of(flow, sources)
        frames = taken(turns, 11)
        assert [set(source.readers) for source in sources if isinstance(source, Recording)] == [{here}, {here}]
        turns.read_ahead()
        turns.read_ahead()  # once is enough
        frames += taken(turns)
    assert frames == [(name, index) for index in range(30) for name in ("a", "b")]
    for source, before in zip(sources, (6, 5), strict=True):
        assert isinstance(source, Recording)
        assert source.readers == [here] * before + ["decode"] * (30 - before)


@pytest.mark.parametrize("late", [False, True])
def test_recordings_that_begin_later_are_read_ahead_too(late: bool) -> None:
    sources = [Recording(str(n), 2) for n in range(DECODERS + 2)]
    with Flow() as flow:
        turns = turns_of(flow, list(sources), ahead=not late)
        if late:
            taken(turns, 1)
            turns.read_ahead()
        taken(turns)
    assert all(set(source.readers) == {"decode"} for source in sources[DECODERS:])


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stop_is_heard_between_two_frames(ahead: bool) -> None:
    stop = StopRequest()
    source = Recording("a", 1000)
    with Flow() as flow:
        turns = turns_of(flow, [source], stop, ahead)
        taken(turns, 3)
        stop.signal_number = 2
        taken(turns)
    assert len(source.readers) < 1000


class Watched(Recording):
    """One frame; counts how often somebody asked what kind of source it is."""

    asked = 0

    @property
    def prompt(self) -> bool:  # type: ignore[override]
        self.asked += 1
        return True


def test_who_waits_for_its_turn_is_not_asked_again_at_every_turn_of_others() -> None:
    sources = [Watched(str(n), 1) for n in range(100)]
    with Flow() as flow:
        taken(turns_of(flow, list(sources)))
    assert max(source.asked for source in sources) < 50
