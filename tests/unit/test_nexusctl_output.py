"""How nexusctl's values become text, without a daemon."""

from __future__ import annotations

import io

import pytest

from nexusctl.cli import run_command
from nexusctl.exits import MEANINGS
from nexusctl.output import Page, _visible, clean, columns, fitting, folded, page_of, pairs, span, wrapped

PLAIN = Page(False, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-3, "0s"),
        (0.9, "0s"),
        (61, "1m 1s"),
        (3600, "1h 0m"),
        (93784, "1d 2h"),
        (273845.5, "3d 4h"),
    ],
)
def test_a_span_of_time_shows_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_control_characters_of_a_module_do_not_reach_the_terminal() -> None:
    assert clean("a\x1b[31m\r\nb\tc\udc80é") == "a?[31m? b   c?é"


def test_columns_are_aligned_and_nothing_trails() -> None:
    assert columns([("A", "B"), ("long", ""), ("x", "12")], PLAIN, frozenset({1})) == [
        "A      B",
        "long",
        "x     12",
    ]


def test_only_words_for_states_are_painted() -> None:
    lines = columns([("A", "STATE"), ("x", "failed"), ("y", "other")], Page(True, 80))
    assert lines == ["\x1b[2mA  STATE\x1b[0m", "x  \x1b[31mfailed\x1b[0m", "y  other"]


def test_a_list_of_values_takes_a_line_each() -> None:
    assert pairs([("a", "1"), ("config", ["x = 1", "y = 2"])]) == [
        "  a       1",
        "  config  x = 1",
        "          y = 2",
    ]


def test_text_is_broken_at_spaces_and_a_longer_word_anywhere() -> None:
    assert wrapped("one two three four five six", 20) == ["one two three four", "five six"]
    assert wrapped("x" * 45, 20) == ["x" * 20, "x" * 20, "x" * 5]
    assert wrapped("x" * 45, None) == ["x" * 45]
    assert wrapped("", 20) == [""]


def test_a_table_that_is_too_wide_loses_its_last_columns_and_then_the_end_of_one() -> None:
    rows = [("KEY", "VALUE", "TYPE"), ("name", "v" * 40, "text")]
    assert fitting(rows, Page(False, 60), least=2)[1] == f"name  {'v' * 40}  text"
    assert fitting(rows, Page(False, 50), least=2)[1] == f"name  {'v' * 40}"
    assert fitting(rows, Page(False, 40), least=2)[1] == f"name  {'v' * 33}…"
    assert fitting(rows, PLAIN, least=2)[1] == f"name  {'v' * 40}  text"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_no_colours_and_no_limit() -> None:
    page = page_of(io.StringIO())
    assert (page.colour, page.width) == (False, None)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colours_still_has_its_width(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("COLUMNS", "97")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert page_of(Terminal()).colour
    monkeypatch.setenv(name, value)
    page = page_of(Terminal())
    assert (page.colour, page.width) == (False, 97)


def test_a_line_is_broken_at_spaces_and_its_colours_take_no_room() -> None:
    page = Page(True, 24)
    line = f"{page.paint('2025-01-01', 'dim')}  a/b  {page.state('failed')}: exit status 3"
    lines = folded(line, page)
    assert [_visible(one) for one in lines] == ["2025-01-01  a/b  failed:", "  exit status 3"]
    assert folded(line, Page(True, None)) == [line]


def test_the_exit_statuses_of_the_help_are_broken_at_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert run_command(["--help"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.partition("Exit status:")[2].splitlines())) <= 60
    assert all(meaning.split()[-1] in said for meaning in MEANINGS.values())
