"""Every fault of a file at once: each value is read apart, by the type its field has.

Knows types (msgspec classes and what they are made of), not what a module or its keys mean.
"""

import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo

from nexusd.domain.units import Seconds, Size, parse_unit

# A file with more faults is no manifest at all; the rest would only be noise.
MOST_FAULTS = 100
_SHOWN = 80
_FAULTY: Final = object()


class Fault(Struct, frozen=True):
    """One thing that is wrong in a file: where, what was expected, what stood there, what was meant."""

    file: str
    key: str
    expected: str
    found: str
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}: {self.key}" if self.key else self.file
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}: expected {self.expected}, found {self.found}{hint}"


class Reading:
    """What could be read of a raw value, and everything that could not.

    `usable` is the raw value without its faulty parts; `touched` are the keys in which something is wrong.
    """

    def __init__(self, raw: object, kind: type[Struct], file: str) -> None:
        self.faults: list[Fault] = []
        self.touched: set[str] = set()
        self._file = file
        usable: Any = _FAULTY
        try:
            usable = self._read(raw, kind, "")
        except _TooMany:
            self._tell_that_there_are_more()
        self.usable: dict[str, Any] | None = None if usable is _FAULTY else usable

    def add(self, key: str, expected: str, found: str, hint: str | None = None) -> None:
        """Notes a fault that was found by other means, within the bound of faults."""
        try:
            self._note(key, expected, found, hint)
        except _TooMany:
            self._tell_that_there_are_more()

    def concerns(self, key: str) -> bool:
        """Whether something is wrong at this key, or at one that holds it."""
        return any(key == bad or key.startswith((f"{bad}.", f"{bad}[")) for bad in self.touched)

    def _note(self, key: str, expected: str, found: str, hint: str | None = None) -> Any:
        if len(self.faults) >= MOST_FAULTS:
            raise _TooMany
        self.faults.append(Fault(self._file, printable(_cut(key)), expected, found, hint))
        self.touched.add(key)
        return _FAULTY

    def _tell_that_there_are_more(self) -> None:
        if len(self.faults) == MOST_FAULTS:
            found = f"more than {MOST_FAULTS} faults"
            self.faults.append(Fault(self._file, "", "a manifest", found, "the others are not listed"))

    def _read(self, value: object, kind: Any, key: str) -> Any:
        bare = bare_type(kind)
        if isinstance(bare, type) and issubclass(bare, Struct):
            return self._read_struct(value, bare, key)
        if get_origin(bare) is dict:
            name_kind, item_kind = get_args(bare)
            return self._read_dict(value, name_kind, item_kind, key)
        if get_origin(bare) is tuple:
            return self._read_list(value, kind, get_args(bare)[0], key)
        return self._read_leaf(value, kind, key)

    def _read_struct(self, value: object, kind: type[Struct], key: str) -> Any:
        if not isinstance(value, Mapping):
            return self._note(key, "a table", shown(value))
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        usable = {}
        for name, item in value.items():
            if name in fields:
                usable[name] = self._read(item, fields[name].type, _join(key, name))
            else:
                self._unknown_key(str(name), fields, value, key)
        complete = self._has_all_required(fields.values(), value, usable, key)
        return {name: item for name, item in usable.items() if item is not _FAULTY} if complete else _FAULTY

    def _unknown_key(self, name: str, fields: Iterable[str], raw: Mapping[Any, Any], key: str) -> None:
        near = near_match(name, fields)
        place = f"in [{key}]" if key else "at the top"
        self._note(_join(key, name), f"a known key {place}", "an unknown key", _did_you_mean(near))
        # The key that was meant is not judged as missing too.
        if near and near not in raw:
            self.touched.add(_join(key, near))

    def _has_all_required(
        self, fields: Iterable[FieldInfo], raw: Mapping[Any, Any], usable: dict[str, Any], key: str
    ) -> bool:
        complete = True
        for field in fields:
            name = field.encode_name
            if not field.required:
                continue
            if name not in raw and _join(key, name) not in self.touched:
                self._note(_join(key, name), expectation(field.type), "nothing")
            complete = complete and usable.get(name, _FAULTY) is not _FAULTY
        return complete

    def _read_dict(self, value: object, name_kind: Any, item_kind: Any, key: str) -> Any:
        if not isinstance(value, Mapping):
            return self._note(key, "a table", shown(value))
        usable = {}
        for name, item in value.items():
            place = _join(key, str(name))
            name_read, item_read = self._read_leaf(name, name_kind, place), self._read(item, item_kind, place)
            if name_read is not _FAULTY and item_read is not _FAULTY:
                usable[name] = item_read
        return usable

    def _read_list(self, value: object, kind: Any, item_kind: Any, key: str) -> Any:
        if not isinstance(value, list | tuple) or len(value) < _least_length(kind):
            return self._note(key, expectation(kind), shown(value))
        read = [self._read(item, item_kind, f"{key}[{index}]") for index, item in enumerate(value)]
        usable = [item for item in read if item is not _FAULTY]
        return usable if len(usable) >= _least_length(kind) else _FAULTY

    def _read_leaf(self, value: object, kind: Any, key: str) -> Any:
        try:
            msgspec.convert(value, kind, dec_hook=parse_unit)
        except (msgspec.ValidationError, UnicodeError):
            near = near_match(value, _choices(kind))
            found = sort_of(value) if _is_private(kind) else shown(value)
            return self._note(key, expectation(kind), found, _did_you_mean(near))
        return value


class _TooMany(Exception):
    """The bound of faults is reached; what follows is not looked at."""


def expectation(kind: Any) -> str:
    """What a field of this type wants, in words."""
    metas = notes_of(kind)
    titles = [meta.title for meta in metas if meta.title]
    bare = bare_type(kind)
    if titles:
        return titles[0]
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(shown(choice) for choice in get_args(bare))
    if get_origin(bare) is tuple:
        item = bare_type(get_args(bare)[0])
        return "a list of strings" if item is str else "a list"
    if isinstance(bare, type) and issubclass(bare, Seconds | Size):
        return bare.expected
    return _PLAIN.get(bare, "a table") + "".join(_range(meta) for meta in metas)


def shown(value: object) -> str:
    """A value as a manifest would have it, short and printable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _cut(json.dumps(value, ensure_ascii=not value.isprintable()))
    if isinstance(value, int | float):
        # A decimal text of a huge integer is refused by Python itself.
        return _cut(str(value)) if isinstance(value, float) or value.bit_length() < 256 else "a huge number"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return _shown_list(value)
    return "nothing" if value is None else printable(_cut(str(value)))


def sort_of(value: object) -> str:
    """What kind of value it is, without telling the value."""
    return _PLAIN.get(type(value), "a table" if isinstance(value, Mapping) else "another type of value")


def _shown_list(items: Sequence[object]) -> str:
    # Lists in lists are not followed: they may be nested deeper than Python's stack.
    words = ["[…]" if isinstance(item, list | tuple) else shown(item) for item in items[:4]]
    return _cut(f"[{', '.join([*words, '…'] if len(items) > 4 else words)}]")


def printable(text: str) -> str:
    """The text with everything escaped that a terminal or an UTF-8 encoder would stumble over."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def near_match(value: object, known: Iterable[str]) -> str | None:
    """The known word that was perhaps meant."""
    # difflib takes time by the square of the length: nobody mistypes a word into a page.
    if not isinstance(value, str) or len(value) > 64:
        return None
    by_lower = {word.lower(): word for word in known}
    matches = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


_PLAIN: Final = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    Any: "a value",
}


def _did_you_mean(near: str | None) -> str | None:
    return f"did you mean {shown(near)}?" if near else None


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def bare_type(kind: Any) -> Any:
    """The type without its notes and without `| None`."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif _optional(kind) is not None:
            kind = _optional(kind)
        else:
            return kind


def notes_of(kind: Any) -> Sequence[Meta]:
    """The notes on a type, those inside `| None` included."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        return [*notes_of(inner), *(note for note in notes if isinstance(note, Meta))]
    inner = _optional(kind)
    return [] if inner is None else notes_of(inner)


def _optional(kind: Any) -> Any:
    """`T` of `T | None`; None for any other type."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    others = [part for part in get_args(kind) if part is not types.NoneType]
    return others[0] if len(others) == 1 else None


def _choices(kind: Any) -> Iterable[str]:
    bare = bare_type(kind)
    return [str(choice) for choice in get_args(bare)] if get_origin(bare) is Literal else ()


def _least_length(kind: Any) -> int:
    return max((meta.min_length or 0 for meta in notes_of(kind)), default=0)


def _is_private(kind: Any) -> bool:
    return any((meta.extra or {}).get("private") for meta in notes_of(kind))


def _range(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge:g} to {meta.le:g}" if meta.le < 2**31 - 1 else f" of at least {meta.ge:g}"
    if meta.gt is not None:
        return f" above {meta.gt:g}"
    return ""
