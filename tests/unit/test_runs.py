"""The key of a run, as text and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusd.domain.manifest_sections import ID_PATTERN
from nexusd.domain.runs import RunKey, parse


def test_a_key_reads_as_module_replica_generation_and_token():
    key = RunKey("vitals/heartbeat-client", 0, 3, "9f3a1c2b")
    assert key.text() == "vitals/heartbeat-client#0@3~9f3a1c2b"


@given(
    st.builds(
        RunKey,
        st.from_regex(ID_PATTERN, fullmatch=True),
        st.integers(0, 10**6),
        st.integers(1, 10**6),
        st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    )
)
def test_every_key_is_read_back_as_it_was(key):
    assert parse(key.text()) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vitals/one",
        "vitals/one#0",
        "vitals/one#0@1",
        "vitals/one#0@1~",
        "#0@1~ab",
        "a/b#x@1~ab",
        "a/b#0@1~a b",
    ],
)
def test_what_is_no_key_is_refused(text):
    with pytest.raises(ValueError, match="not a run"):
        parse(text)
