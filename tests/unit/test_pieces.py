"""Long work on the event loop: others have their turn in between."""

import asyncio

import pytest

from nexusd.system import pieces
from nexusd.system.pieces import in_pieces


async def turns_of_others(steps: int) -> tuple[list[int], int]:
    """What the work yielded, and how often somebody else had a turn meanwhile."""
    work = asyncio.create_task(in_pieces(range(steps)))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    return work.result(), turns


def test_when_a_piece_has_taken_its_time_it_is_others_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_S", 0.0)
    done, turns = asyncio.run(turns_of_others(50))
    assert done == list(range(50))
    assert turns >= 50


def test_short_work_is_done_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_S", 60.0)
    done, turns = asyncio.run(turns_of_others(50))
    assert done == list(range(50))
    assert turns < 5
