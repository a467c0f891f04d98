"""Which configuration values are valid, which are in effect, and which may be shown."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusd.domain.errors import BadValue
from nexusd.domain.manifest import ConfigKey, InvalidManifest, Manifest, parse_manifest
from nexusd.domain.settings import MASK, check_value, effective, masked


def key(kind: Any, default: Any = None, **more: Any) -> ConfigKey:
    return ConfigKey(type=kind, default=default, **more)


def manifest_with(**config: dict[str, Any]) -> Manifest:
    return parse_manifest({"run": {"python": "a:B"}, "config": config}, module_id="a/b", file="f")


VALID = [
    (key("int"), 5, 5),
    (key("int", min=1, max=5), 5, 5),
    (key("int"), -(2**63), -(2**63)),
    (key("float"), 5, 5.0),
    (key("float", max=1), 0.5, 0.5),
    (key("bool"), True, True),
    (key("str"), "5", "5"),
    (key("str", choices=("a", "b")), "b", "b"),
    (key("duration"), "1m30s", 90.0),
    (key("duration"), 2, 2.0),
    (key("duration", min="1s", max="1h"), "60m", 3600.0),
    (key("duration", choices=("1s", "2s")), 2, 2.0),
    (key("list"), ["a", 1, 1.5, True], ["a", 1, 1.5, True]),
    (key("list"), [], []),
    (key("list", choices=("a", "b")), ["b", "b"], ["b", "b"]),
]


@pytest.mark.parametrize(("setting", "value", "converted"), VALID)
def test_a_valid_value_comes_back_in_its_type(setting: ConfigKey, value: object, converted: object):
    result = check_value(setting, value)
    assert result == converted
    assert type(result) is type(converted)


INVALID = [
    (key("int"), True),
    (key("int"), "5"),
    (key("int"), 5.0),
    (key("int"), None),
    (key("int"), 2**63),
    (key("int", min=1), 0),
    (key("int", max=1), 2),
    (key("int", choices=(1, 2)), 3),
    (key("float"), float("nan")),
    (key("float"), float("inf")),
    (key("float"), 10**400),
    (key("float"), True),
    (key("float"), "0.5"),
    (key("bool"), 1),
    (key("bool"), "true"),
    (key("str"), 5),
    (key("str"), "\ud800"),
    (key("duration"), "10"),
    (key("duration"), -1),
    (key("duration"), True),
    (key("duration", max="1m"), "61s"),
    (key("list"), "ab"),
    (key("list"), {"a": 1}),
    (key("list"), [[1]]),
    (key("list"), [None]),
    (key("list"), [float("nan")]),
    (key("list", choices=(1, 2)), [True]),
]


@pytest.mark.parametrize(("setting", "value"), INVALID)
def test_an_invalid_value_is_refused(setting: ConfigKey, value: object):
    with pytest.raises(BadValue):
        check_value(setting, value)


def test_a_refusal_names_key_type_range_and_what_stood_there():
    with pytest.raises(BadValue) as caught:
        check_value(key("int", min=100, max=60000), "often", "interval_ms")
    assert caught.value.message == 'interval_ms: expected an int (64 bits) from 100 to 60000, found "often"'
    assert caught.value.data()["key"] == "interval_ms"


def test_a_refusal_names_the_choices():
    with pytest.raises(BadValue, match=r'one of \["a", "b"\], found "c"'):
        check_value(key("str", choices=("a", "b")), "c")


@pytest.mark.parametrize("value", ["hunter2", ["hunter2"], {"hunter2": 1}])
def test_a_refusal_never_tells_a_secret(value: object):
    with pytest.raises(BadValue) as caught:
        check_value(key("int", secret=True), value, "token")
    assert "hunter2" not in f"{caught.value} {caught.value.data()}"
    assert "token" in str(caught.value)


def test_configured_values_lie_over_the_defaults():
    manifest = manifest_with(a={"type": "int", "default": 1}, b={"type": "duration", "default": "1s"})
    assert effective(manifest, {"b": "2s"}) == {"a": 1, "b": 2.0}


def test_a_configured_value_that_is_no_longer_valid_falls_back_to_the_default():
    manifest = manifest_with(a={"type": "int", "default": 1, "max": 5})
    assert effective(manifest, {"a": 6}) == {"a": 1}


def test_a_configured_value_whose_key_is_gone_is_left_out():
    assert effective(manifest_with(), {"a": 6}) == {}


def test_the_default_of_a_list_can_not_be_changed_through_what_is_in_effect():
    manifest = manifest_with(a={"type": "list", "default": [1]})
    effective(manifest, {})["a"].append(2)
    assert effective(manifest, {}) == {"a": [1]}


def test_secrets_are_masked_and_others_are_not():
    manifest = manifest_with(
        name={"type": "str", "default": "x"}, token={"type": "str", "default": "", "secret": True}
    )
    assert masked(manifest, {"name": "x", "token": "hunter2"}) == {"name": "x", "token": MASK}


def test_a_key_that_is_gone_is_masked():
    assert masked(manifest_with(), {"token": "hunter2"}) == {"token": MASK}


VALUES = st.one_of(
    *(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["1s", "2m"]),
    ),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
)
KEYS = st.fixed_dictionaries(
    {"type": st.sampled_from(["int", "float", "bool", "str", "duration", "list"]), "default": VALUES},
    optional={
        "min": st.integers() | st.just("1s"),
        "max": st.integers() | st.floats(),
        "choices": st.lists(VALUES),
    },
)


@settings(deadline=None)
@given(KEYS, st.dictionaries(st.just("k"), VALUES))
def test_what_is_in_effect_is_always_valid_and_fits_json(raw: dict[str, Any], configured: dict[str, Any]):
    try:
        manifest = manifest_with(k=raw)
    except InvalidManifest:
        return
    values = effective(manifest, configured)
    assert values.keys() == {"k"}
    assert check_value(manifest.config["k"], values["k"]) == values["k"]
    assert msgspec.json.decode(msgspec.json.encode(values)) == values
