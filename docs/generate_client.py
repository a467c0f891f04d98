"""Writes nexusctl/methods.py: a method of NexusClient for each row of the daemon's table.

Run as `python docs/generate_client.py` from the repository; a test tells when it is due.
"""

import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import Mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nexusd.api import Parts, build_server  # noqa: E402
from nexusd.config import Api as Bounds  # noqa: E402
from nexusd.rpc.call import Call, NoParams  # noqa: E402

TARGET = ROOT / "nexusctl" / "methods.py"
WIDTH = 110
HEAD = '''"""The daemon's methods as methods of the clients. Generated from its table: python docs/generate_client.py.

What they do is told by `rpc.discover`; how a request travels is the clients' affair.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

# What does more than read: it is not asked a second time when the connection breaks.
'''
TYPES = {"string": "str", "boolean": "bool", "integer": "int", "number": "float", "null": "None"}


def text() -> str:
    """The text of methods.py."""
    document = described()
    audited = [method["name"] for method in document["methods"] if method["x-audited"]]
    names = "".join(f'        "{name}",\n' for name in audited)
    actions = f"ACTIONS = frozenset(\n    {{\n{names}    }}\n)"
    classes = [_class(document, is_async) for is_async in (False, True)]
    return f"{HEAD}{actions}\n\n\n" + "\n\n\n".join(classes) + "\n"


def described() -> dict[str, Any]:
    """The table in its own words. No handler runs but that of rpc.discover, so nothing is needed behind them."""
    parts = Parts(*(Mock() for _ in fields(Parts)))
    parts.identity.version = ""
    rows = build_server(parts, Bounds()).dispatcher.rows
    discover = next(row for row in rows if row.name == "rpc.discover")
    document: dict[str, Any] = discover.handler(Mock(spec=Call), NoParams())
    return document


def _class(document: dict[str, Any], is_async: bool) -> str:
    name, word = ("AsyncMethods", "async ") if is_async else ("Methods", "")
    schemas = document["components"]["schemas"]
    head = f'''class {name}:
    """`request` is the client's own; a parameter that is None is not sent."""

    {word}def request(self, method: str, needed: dict[str, Any], **may: Any) -> Any:
        raise NotImplementedError
'''
    methods = (_method(method, schemas, is_async) for method in document["methods"])
    return "\n".join([head, *methods]).rstrip()


def _method(method: dict[str, Any], schemas: dict[str, Any], is_async: bool) -> str:
    needed = [param for param in method["params"] if param["required"]]
    may = [param for param in method["params"] if not param["required"]]
    first, others = (may[:1], may[1:]) if not needed else ([], may)
    taken = ["self", *(_parameter(param, schemas) for param in [*needed, *first])]
    taken += ["*"] * bool(others) + [_parameter(param, schemas) for param in others]
    dictionary = ", ".join(f'"{param["name"]}": {param["name"]}' for param in needed)
    sent = [f'"{method["name"]}"', f"{{{dictionary}}}", *(f"{one['name']}={one['name']}" for one in may)]
    word, wait = ("async ", "await ") if is_async else ("", "")
    name = method["name"].removeprefix("rpc.")
    return (
        _fitted(f"    {word}def {name}(", taken, ") -> dict[str, Any]:", "    ")
        + f'\n        """{method["summary"]}."""\n'
        + _fitted(f"        result: dict[str, Any] = {wait}self.request(", sent, ")", "        ")
        + "\n        return result\n"
    )


def _parameter(param: dict[str, Any], schemas: dict[str, Any]) -> str:
    kind = _type(param["schema"], schemas)
    if param["required"]:
        return f"{param['name']}: {kind}"
    default = param["schema"].get("default")
    if isinstance(default, list | dict):
        default = None  # not sent: the daemon has its own
    if default is None and "None" not in kind:
        kind = f"{kind} | None" if kind != "Any" else kind
    return f"{param['name']}: {kind} = {default!r}"


def _type(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _type(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "enum" in schema:
        words = sorted(one for one in schema["enum"] if one is not None)
        literal = _literal(words)
        return f"{literal} | None" if None in schema["enum"] else literal
    if "anyOf" in schema:
        return " | ".join(sorted({_type(one, schemas) for one in schema["anyOf"]}, key=_none_last))
    if schema.get("type") == "array":
        return f"list[{_type(schema.get('items', {}), schemas)}]"
    if schema.get("type") == "object":
        return "dict[str, Any]"
    return TYPES.get(schema.get("type", ""), "Any")


def _literal(words: Iterable[str]) -> str:
    return "Literal[" + ", ".join(f'"{word}"' for word in words) + "]"


def _none_last(name: str) -> tuple[bool, str]:
    return name == "None", name


def _fitted(head: str, items: list[str], tail: str, indent: str) -> str:
    """On one line, or broken as the formatter would."""
    line = f"{head}{', '.join(items)}{tail}"
    if len(line) <= WIDTH:
        return line
    inner = f"{indent}    {', '.join(items)}"
    if len(inner) <= WIDTH:
        return f"{head}\n{inner}\n{indent}{tail}"
    lines = "".join(f"{indent}    {item},\n" for item in items)
    return f"{head}\n{lines}{indent}{tail}"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
