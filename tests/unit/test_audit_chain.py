"""What is found in an audit log that was tampered with, named by file and line; and in one that was not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusd.domain.chain import GENESIS, Head, Mark, Verification, link_of, sealed

NOTHING = Mark()


def chain(count: int, before: Mark = NOTHING) -> tuple[list[bytes], Mark]:
    lines, mark = [], before
    for number in range(count):
        line, mark = sealed(b'{"method":"stop_module","uid":%d}' % number, mark)
        lines.append(line)
    return lines, mark


LINES, LAST = chain(10)
HEAD = Head(LAST)


def found(*lines: bytes, head: Head | None = HEAD, anchors: dict[int, str] | None = None) -> list[str]:
    verification = Verification(head, anchors or {})
    verification.read("audit.log", lines)
    return [str(finding) for finding in verification.verdict().findings]


def forged(line: bytes) -> bytes:
    """The line with other content, its hash made to fit."""
    link = link_of(line)
    assert link is not None
    content = line.partition(b",")[2].partition(b',"prev"')[0].replace(b"stop_module", b"get_status")
    return sealed(b"{" + content + b"}", Mark(link.seq - 1, link.prev))[0]


def test_a_whole_log_has_nothing_to_be_found() -> None:
    verification = Verification(HEAD)
    verification.read("audit.log", LINES)
    verdict = verification.verdict()
    assert verdict.is_whole
    assert (verdict.records, verdict.first, verdict.last, verdict.after_head) == (10, 1, LAST, 0)


def test_a_line_is_a_json_object_that_names_the_hash_of_the_line_before() -> None:
    first, second = link_of(LINES[0]), link_of(LINES[1])
    assert first is not None and second is not None
    assert (first.seq, first.prev, first.is_intact) == (1, GENESIS, True)
    assert second.prev == first.hash


def test_a_changed_line_is_named() -> None:
    changed = LINES[4].replace(b'"uid":4', b'"uid":0')
    assert found(*LINES[:4], changed, *LINES[5:]) == [
        "audit.log line 5: record 5 was changed: its hash is not that of its content"
    ]


def test_a_changed_number_costs_one_line_and_not_all_that_follow() -> None:
    changed = LINES[4].replace(b'"seq":5', b'"seq":500')
    assert found(*LINES[:4], changed, *LINES[5:]) == [
        "audit.log line 5: record 500 was changed: its hash is not that of its content"
    ]


def test_a_line_that_was_changed_and_hashed_anew_is_named_by_the_one_after_it() -> None:
    assert found(*LINES[:4], forged(LINES[4]), *LINES[5:]) == [
        "audit.log line 5: record 5 was replaced: record 6, the next, follows another"
    ]


def test_a_log_that_was_written_anew_from_a_line_on_is_not_the_one_that_the_head_names() -> None:
    mark = link_of(LINES[3])
    assert mark is not None
    anew, _ = chain(6, mark.mark)
    anew[5] = sealed(b'{"method":"harmless"}', link_of(anew[4]).mark)[0]  # type: ignore[union-attr]
    assert found(*LINES[:4], *anew) == ["audit.log line 10: record 10 is not the one whose hash was noted"]


def test_an_anchor_that_was_noted_elsewhere_shows_what_a_new_head_would_hide() -> None:
    other, other_last = chain(10, Mark(0, "f" * 64))
    told = found(*other, head=Head(other_last, Mark(1, "f" * 64)), anchors={10: LAST.hash})
    assert told == ["audit.log line 10: record 10 is not the one whose hash was noted"]


def test_a_missing_line_is_named_by_its_number() -> None:
    assert found(*LINES[:4], *LINES[5:]) == ["audit.log line 5: record 5 is missing before this line"]
    assert found(*LINES[3:]) == ["audit.log line 1: records 1 to 3 are missing before this line"]


def test_swapped_lines_are_out_of_place_and_not_missing() -> None:
    assert found(*LINES[:3], LINES[4], LINES[3], *LINES[5:]) == [
        "audit.log line 5: record 4 is out of place: it belongs before audit.log line 4"
    ]


def test_a_line_that_stands_twice_is_named() -> None:
    assert found(*LINES[:5], LINES[2], *LINES[5:]) == ["audit.log line 6: record 3 stands here once more"]


def test_a_cut_end_is_found_by_the_head_alone() -> None:
    assert found(*LINES[:7]) == [
        "audit.log line 7: the end is cut off: records 8 to 10 are missing after this line"
    ]
    assert found(*LINES[:7], head=None) == []
    assert found() == ["the log line 0: the end is cut off: records 1 to 10 are missing after this line"]


@pytest.mark.parametrize("junk", [b"", b"rubbish", b"{}", LINES[4][:50], b"\xff\xfe"])
def test_a_line_that_is_no_record_is_named_and_hides_no_other(junk: bytes) -> None:
    unreadable = "audit.log line 5: this is no record of the audit log"
    assert found(*LINES[:4], junk, *LINES[5:]) == [unreadable]
    assert found(*LINES[:4], junk, *LINES[4:]) == [unreadable]
    missing = "audit.log line 6: records 5 to 6 are missing before this line"
    assert found(*LINES[:4], junk, *LINES[6:]) == [unreadable, missing]


def test_a_file_that_is_missing_is_told_where_the_next_begins() -> None:
    verification = Verification(HEAD)
    verification.read("audit.000000000001.log", LINES[:3])
    verification.read("audit.log", LINES[6:])
    assert [str(one) for one in verification.verdict().findings] == [
        "audit.log line 1: records 4 to 6 are missing before this line"
    ]


def test_what_rotation_removed_is_not_missing_when_the_head_says_so() -> None:
    before = link_of(LINES[2])
    assert before is not None
    head = Head(LAST, Mark(4, before.hash))
    assert found(*LINES[3:], head=head) == []
    assert found(*LINES[2:], head=head) == []  # nexusd was killed before it removed the file
    assert found(*LINES[4:], head=head) == ["audit.log line 1: record 4 is missing before this line"]
    other = Head(LAST, Mark(4, "f" * 64))
    assert found(*LINES[3:], head=other) == [
        "audit.log line 1: record 4 does not follow the one that was noted before it"
    ]


def test_records_after_the_head_are_counted_and_no_fault() -> None:
    verification = Verification(Head(Mark(8, link_of(LINES[7]).hash)))  # type: ignore[union-attr]
    verification.read("audit.log", LINES)
    verdict = verification.verdict()
    assert (verdict.is_whole, verdict.after_head) == (True, 2)


@given(st.permutations(range(6)))
def test_no_reordering_goes_unnoticed(order: list[int]) -> None:
    lines, last = chain(6)
    assert bool(found(*(lines[place] for place in order), head=Head(last))) is (order != sorted(order))


@given(st.integers(0, 9), st.data())
def test_no_flipped_bit_goes_unnoticed(number: int, data: st.DataObject) -> None:
    line = bytearray(LINES[number])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= 1 << data.draw(st.integers(0, 7))
    assert found(*LINES[:number], bytes(line), *LINES[number + 1 :])


@given(st.sets(st.integers(0, 9), min_size=1))
def test_no_lines_that_were_taken_out_go_unnoticed(taken: set[int]) -> None:
    assert found(*(line for place, line in enumerate(LINES) if place not in taken))
