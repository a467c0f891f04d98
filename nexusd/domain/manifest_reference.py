"""The manifest's definitions as a JSON Schema for editors and as tables for people.

Everything here is read off the classes in `manifest_sections`; nothing is said twice.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import FieldInfo

from nexusd.domain.fields import bare_type, notes_of, shown
from nexusd.domain.manifest_sections import Check, Manifest, Run
from nexusd.domain.units import LARGEST_BYTES, LONGEST_S, Seconds, Size

_EXACTLY_ONE: Final[dict[type, tuple[str, ...]]] = {
    Run: ("python", "exec"),
    Check: Check.__struct_fields__,
}
_PLAIN: Final[dict[Any, dict[str, Any]]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    Any: {},
    Seconds: {
        "anyOf": [
            {"type": "string", "pattern": Seconds.pattern},
            {"type": "number", "minimum": 0, "maximum": LONGEST_S},
        ]
    },
    Size: {
        "anyOf": [
            {"type": "string", "pattern": Size.pattern},
            {"type": "integer", "minimum": 1, "maximum": LARGEST_BYTES},
        ]
    },
}
_WORDS: Final[dict[Any, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    Any: "as `type` says",
    Seconds: "duration",
    Size: "size",
}
_LIMITS: Final = {
    "pattern": "pattern",
    "ge": "minimum",
    "le": "maximum",
    "gt": "exclusiveMinimum",
    "min_length": "minItems",
}


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a module.toml. Rules between keys are beyond it; `check` knows them."""
    sections = {section for _, section in _sections("", Manifest)} - {Manifest}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "module.toml",
        **_struct_schema(Manifest),
        "required": ["run"],
        "$defs": {
            kind.__name__: _struct_schema(kind) for kind in sorted(sections, key=lambda kind: kind.__name__)
        },
    }


def manifest_tables() -> str:
    """One Markdown table for each section, in the order of the definitions."""
    seen: set[type[Struct]] = set()
    parts = []
    for place, section in _sections("", Manifest):
        if section not in seen:
            seen.add(section)
            parts.append(_table(place, section))
    return "\n".join(parts)


def _sections(place: str, section: type[Struct]) -> Iterator[tuple[str, type[Struct]]]:
    yield place, section
    for field in msgspec.structs.fields(section):
        inner = _section_in(field)
        if inner is not None:
            named = ".NAME" if get_origin(bare_type(field.type)) is dict else ""
            yield from _sections(f"{place}.{field.name}{named}".lstrip("."), inner)


def _section_in(field: FieldInfo) -> type[Struct] | None:
    kind = bare_type(field.type)
    inner = bare_type(get_args(kind)[1]) if get_origin(kind) is dict else kind
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None


def _struct_schema(section: type[Struct]) -> dict[str, Any]:
    fields = msgspec.structs.fields(section)
    schema: dict[str, Any] = {
        "description": " ".join((section.__doc__ or "").split()),
        "type": "object",
        "properties": {field.name: _field_schema(field) for field in fields},
        "additionalProperties": False,
    }
    required = [field.name for field in fields if field.required]
    if required:
        schema["required"] = required
    if section in _EXACTLY_ONE:
        schema["oneOf"] = [{"required": [name]} for name in _EXACTLY_ONE[section]]
    return schema


def _field_schema(field: FieldInfo) -> dict[str, Any]:
    schema = _schema(field.type)
    schema["description"] = _description(field)
    if field.default is not NODEFAULT and field.default is not None and _section_in(field) is None:
        schema["default"] = _default(field)
    return schema


def _schema(kind: Any) -> dict[str, Any]:
    schema = _bare_schema(bare_type(kind))
    for note in notes_of(kind):
        for attribute, keyword in _LIMITS.items():
            if getattr(note, attribute) is not None:
                schema[keyword] = getattr(note, attribute)
    return schema


def _bare_schema(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(get_args(kind)[0])}
    if get_origin(kind) is dict:
        name, item = get_args(kind)
        return {"type": "object", "propertyNames": _schema(name), "additionalProperties": _schema(item)}
    if isinstance(kind, type) and issubclass(kind, Struct):
        return {"$ref": f"#/$defs/{kind.__name__}"}
    return dict(_PLAIN.get(kind, {"type": ["number", "string"]}))


def _default(field: FieldInfo) -> Any:
    value = field.default
    if isinstance(value, Seconds | Size):
        return value.text()
    return list(value) if isinstance(value, tuple) else value


def _description(field: FieldInfo) -> str:
    return next(note.description for note in notes_of(field.type) if note.description)


def _table(place: str, section: type[Struct]) -> str:
    rows = [_row(field) for field in msgspec.structs.fields(section) if not _is_section(field)]
    if not rows:
        return ""
    title = f"## `[{place}]`" if place else "## At the top"
    doc = " ".join((section.__doc__ or "").split())
    head = "| key | type | default | meaning |\n|---|---|---|---|"
    return "\n".join([title, "", doc, "", head, *rows, ""])


def _is_section(field: FieldInfo) -> bool:
    """Whether the key has a table of its own. The checks share one shape: they are keys of [health]."""
    inner = _section_in(field)
    return inner is not None and inner is not Check


def _row(field: FieldInfo) -> str:
    if field.required:
        default = "required"
    elif field.default in (None, "", ()) or field.default is NODEFAULT:
        default = "none"
    else:
        default = f"`{shown(_default(field))}`"
    return f"| `{field.name}` | {_word(field.type)} | {default} | {_description(field)} |"


def _word(kind: Any) -> str:
    inner = bare_type(kind)
    if get_origin(inner) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(inner))
    if get_origin(inner) is tuple:
        return f"list of {_word(get_args(inner)[0])}s".replace("as `type` says", "value")
    if get_origin(inner) is dict:
        return "table of strings"
    if inner is Check:
        return "check"
    word = _WORDS.get(inner, "number or duration")
    return word + "".join(_range_words(note) for note in notes_of(kind))


def _range_words(note: Meta) -> str:
    return "" if note.ge is None and note.gt is None else _bounds(note)


def _bounds(note: Meta) -> str:
    low = f" ≥ {note.ge:g}" if note.ge is not None else f" > {note.gt:g}"
    return low + (f", ≤ {note.le:g}" if note.le is not None and note.le < 2**31 - 1 else "")
