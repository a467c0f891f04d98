"""The values of a module's configuration keys: which are valid, which are in effect, which may be shown.

Types are those of JSON, taken strictly: the text "5" is no int. Only a duration may be text ("1m30s") or a
number of seconds; it is kept, and given to the module, as a float of seconds. Lists hold JSON scalars.
Storing values and telling the module is for others.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from nexusd.domain.errors import BadValue, NexusError, NotPossible, TimedOut
from nexusd.domain.fields import near_match, shown
from nexusd.domain.manifest_sections import ConfigKey, Manifest
from nexusd.domain.units import Seconds

MASK: Final = "********"
LEAST_MASKED: Final = 4  # characters; to mask shorter ones in a text would tell where they stand
RANGED: Final = ("int", "float", "duration")
# What SQLite, JSON readers in other languages and C programs hold without loss.
_LEAST_INT, _GREATEST_INT = -(2**63), 2**63 - 1


def key_named(module_id: str, keys: Mapping[str, ConfigKey], name: str) -> ConfigKey:
    """Raises BadValue, with the nearest key there is."""
    if name in keys:
        return keys[name]
    near = near_match(name, keys)
    hint = f"did you mean {near}?" if near else f"nexusctl config get {module_id}"
    raise BadValue(f"{module_id} has no configuration key {name}", module_id=module_id, hint=hint, key=name)


def check_value(key: ConfigKey, value: object, name: str = "value") -> Any:
    """The value as the module gets it; BadValue tells what was expected and (unless secret) found."""
    try:
        converted = convert_value(key, value)
        if _fits(key, converted):
            return converted
    except ValueError:
        pass
    expected = expected_value(key)
    found = "a secret value" if key.secret else shown(value)
    raise BadValue(f"{name}: expected {expected}, found {found}", key=name, expected=expected, found=found)


def effective(manifest: Manifest, configured: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every key: the configured one where it is still valid, else the default."""
    return {name: _value_or_default(key, name, configured) for name, key in manifest.config.items()}


def masked(manifest: Manifest, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values fit to be shown. A key the manifest does not know may have been a secret: masked too."""
    return {name: MASK if _is_secret(manifest, name) else value for name, value in values.items()}


def without_words(key: ConfigKey, name: str, error: NexusError) -> NexusError:
    """What a module said of a value, without its words where the key is secret: they may repeat the value."""
    if not key.secret or isinstance(error, TimedOut):
        return error
    kind = BadValue if isinstance(error, BadValue) else NotPossible
    said = "the module refused it" if kind is BadValue else "the module could not be told"
    return kind(
        f"{name}: {said}; its reason is not shown, since the value is secret", module_id=error.module_id
    )


def without_secrets(manifest: Manifest, configured: Mapping[str, Any], text: str) -> str:
    """A module's own words, its secret values masked: it may have put one into an error's text."""
    values = effective(manifest, configured)
    for name, key in manifest.config.items():
        if key.secret:
            for value in values[name] if isinstance(values[name], list) else [values[name]]:
                if len(str(value)) >= LEAST_MASKED:
                    text = text.replace(str(value), MASK)
    return text


def convert_value(key: ConfigKey, value: object) -> Any:
    """The value in the key's type, whatever its range; ValueError when it is of another type."""
    return _CONVERTERS[key.type](value)


def expected_value(key: ConfigKey) -> str:
    """The key's type and range in words."""
    text = _TYPES[key.type]
    if key.min is not None and key.max is not None:
        text += f" from {shown(key.min)} to {shown(key.max)}"
    elif key.min is not None:
        text += f" of at least {shown(key.min)}"
    elif key.max is not None:
        text += f" of at most {shown(key.max)}"
    if key.choices is not None and not key.secret:
        text += f", {'items' if key.type == 'list' else 'one'} of {shown(key.choices)}"
    return text


def converted_key(key: ConfigKey) -> ConfigKey:
    """The key with default, bounds and choices in its type: a duration of "1s" becomes 1.0."""
    if key.type not in ("float", "duration"):
        return key
    return replace(
        key,
        default=convert_value(key, key.default),
        min=None if key.min is None else convert_value(key, key.min),
        max=None if key.max is None else convert_value(key, key.max),
        choices=None if key.choices is None else tuple(convert_value(key, item) for item in key.choices),
    )


def _value_or_default(key: ConfigKey, name: str, configured: Mapping[str, Any]) -> Any:
    if name in configured:
        try:
            return check_value(key, configured[name], name)
        except BadValue:
            pass
    return check_value(key, key.default, name)


def _is_secret(manifest: Manifest, name: str) -> bool:
    return name not in manifest.config or manifest.config[name].secret


def _fits(key: ConfigKey, value: Any) -> bool:
    if key.min is not None and value < convert_value(key, key.min):
        return False
    if key.max is not None and value > convert_value(key, key.max):
        return False
    if key.choices is None:
        return True
    if key.type == "list":
        return all(any(_same(item, choice) for choice in key.choices) for item in value)
    return any(_same(value, convert_value(key, choice)) for choice in key.choices)


def _same(left: object, right: object) -> bool:
    # True == 1 and 1 == 1.0 in Python, not in a configuration.
    return type(left) is type(right) and left == right


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not _LEAST_INT <= value <= _GREATEST_INT:
        raise ValueError
    return value


def _float(value: object) -> float:
    if isinstance(value, float) and math.isfinite(value):
        return value
    return float(_int(value))


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    # A lone surrogate fits no JSON: UnicodeEncodeError is a ValueError.
    value.encode("utf-8")
    return value


def _duration(value: object) -> float:
    return float(Seconds.parse(value))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError
    return [_scalar(item) for item in value]


def _scalar(value: object) -> Any:
    for convert in (_bool, _int, _str):
        try:
            return convert(value)
        except ValueError:
            continue
    return _float(value)


_CONVERTERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "str": _str,
    "duration": _duration,
    "list": _list,
}
_TYPES: Final[Mapping[str, str]] = {
    "int": "an int (64 bits)",
    "float": "a finite number",
    "bool": "true or false",
    "str": "a string",
    "duration": 'a duration ("10s", "500ms", "1m30s" or a number of seconds)',
    "list": "a list of strings, numbers and booleans",
}
