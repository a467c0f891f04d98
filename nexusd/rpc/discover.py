"""The API described by itself: an OpenRPC document made from the table of methods.

What the methods do is told by their rows; nothing is written here a second time.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from nexusd.rpc.call import Method
from nexusd.rpc.codec import CODES, STANDARD

_REFERENCE = "#/components/schemas/{name}"


def document(methods: Iterable[Method], *, title: str, version: str) -> dict[str, Any]:
    """An OpenRPC 1.3 document: https://spec.open-rpc.org"""
    rows = tuple(methods)
    schemas, components = msgspec.json.schema_components(
        [row.params for row in rows], ref_template=_REFERENCE
    )
    described = [
        _described(row, _resolved(schema, components)) for row, schema in zip(rows, schemas, strict=True)
    ]
    return {
        "openrpc": "1.3.2",
        "info": {"title": title, "version": version},
        "methods": described,
        "components": {"schemas": components, "errors": _errors()},
    }


def _described(method: Method, schema: dict[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    return {
        "name": method.name,
        "summary": method.help,
        "paramStructure": "either",
        "params": [
            {"name": name, "required": name in required, "schema": property_schema}
            for name, property_schema in schema.get("properties", {}).items()
        ],
        "result": {"name": "result", "schema": {}},
        "x-permission": method.permission,
        "x-permissions": [one for one in (method.permission, method.also) if one is not None],
        "x-audited": method.audited,
    }


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    found: dict[str, Any] = components[reference.rpartition("/")[2]] if reference else schema
    return found


def _errors() -> dict[str, Any]:
    """Every code there is, under its kind. OpenRPC wants a message: the kind in words."""
    return {
        kind: {"code": code, "message": STANDARD.get(kind, kind.replace("_", " "))}
        for kind, code in CODES.items()
    }
