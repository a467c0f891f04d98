"""Orders between modules: turned round, followed to the end, and their circles."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusd.domain.graph import Graph, closure, cycles

TWO_CIRCLES = {"a": ("b",), "b": ("c",), "c": ("a", "d"), "d": ("e",), "e": ("d",)}


@pytest.mark.parametrize(
    ("requires", "after", "expected"),
    [
        ({}, {}, []),
        ({"a": ("b",), "b": ("c",), "c": ()}, {}, []),
        ({"a": ("b", "c"), "b": ("d",), "c": ("d",)}, {}, []),  # a diamond is no circle
        ({"a": ("a",)}, {}, [("a", "a")]),
        ({"a": ("b",), "b": ("a",)}, {}, [("a", "b", "a")]),
        ({"a": ("b",)}, {"b": ("a",)}, [("a", "b", "a")]),  # order alone closes it, too
        ({"a": ("b",), "b": ("a",)}, {"a": ("b",), "b": ("a",)}, [("a", "b", "a")]),
        ({"x": ("a",), "a": ("b",), "b": ("c",), "c": ("a",)}, {}, [("a", "b", "c", "a")]),
        (TWO_CIRCLES, {}, [("a", "b", "c", "a"), ("d", "e", "d")]),
        ({"a": ("nobody",)}, {}, []),
    ],
)
def test_a_circle_is_named_in_full_and_once(requires, after, expected):
    assert sorted(cycles(Graph(requires, after))) == expected


def test_a_long_chain_is_no_matter_of_recursion():
    chain = {str(number): (str(number + 1),) for number in range(20_000)}
    assert cycles(Graph({**chain, "20000": ("0",)}, {})) != []
    assert cycles(Graph(chain, {})) == []


def test_relations_are_known_from_both_ends():
    graph = Graph({"echo": ("bus",), "greeter": ("bus",)}, {"echo": ("log",)})
    assert graph.required_by == {"bus": ("echo", "greeter")}
    assert graph.before == {"log": ("echo",)}
    assert set(graph.neighbours("bus")) == {"echo", "greeter"}
    assert set(graph.neighbours("echo")) == {"bus", "log"}


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        (["a"], {"b", "c", "d"}),
        (["b"], {"d"}),
        (["d"], set()),
        (["b", "c"], {"d"}),
        (["nobody"], set()),
    ],
)
def test_a_closure_is_all_that_can_be_reached(starts, expected):
    assert closure({"a": ("b", "c"), "b": ("d",), "c": ("d",)}, starts) == expected


def test_a_closure_holds_its_start_only_when_a_circle_leads_back():
    assert closure({"a": ("b",), "b": ("a",)}, ["a"]) == {"a", "b"}


NAMES = "abcdef"
RELATION = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=4).map(tuple))


def has_circle(graph: Graph) -> bool:
    """By taking away whoever follows nobody that is left, until nobody can be taken away."""
    left = {one: {*graph.requires.get(one, ()), *graph.after.get(one, ())} for one in NAMES}
    while free := {one for one, others in left.items() if not others & left.keys()}:
        left = {one: others for one, others in left.items() if one not in free}
    return bool(left)


@given(RELATION, RELATION)
def test_a_circle_is_found_when_and_only_when_there_is_one(requires, after):
    graph = Graph(requires, after)
    found = cycles(graph)
    assert bool(found) is has_circle(graph)
    assert len(set(found)) == len(found)
    for circle in found:
        assert circle[0] == circle[-1]
        for one, other in pairwise(circle):
            assert other in {*requires.get(one, ()), *after.get(one, ())}


@given(RELATION, RELATION)
def test_without_the_modules_of_the_circles_found_no_circle_is_left(requires, after):
    guilty = {one for circle in cycles(Graph(requires, after)) for one in circle}
    kept = [
        {one: others for one, others in relation.items() if one not in guilty}
        for relation in (requires, after)
    ]
    assert cycles(Graph(*kept)) == []


@given(RELATION, st.sets(st.sampled_from(NAMES)))
def test_a_closure_holds_all_followers_of_its_own(relation, starts):
    found = closure(relation, starts)
    for one in found | starts:
        assert set(relation.get(one, ())) <= found
