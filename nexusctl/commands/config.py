"""`config get` and `config set`: a module's typed configuration values."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import click

from nexusctl.client import RpcError
from nexusctl.commands.options import answers, complete_keys, module_argument
from nexusctl.exits import DONE
from nexusctl.invocation import GRACE_S, Invocation
from nexusctl.output import columns, compact, indented, value_text
from nexusctl.selection import with_near_match

APPLIED = {
    "live": "applied at once",
    "reload": "applied by a reload",
    "restart": "applied by a restart",
    "stored": "stored until the module starts",
}


@click.group(no_args_is_help=False)
def config() -> None:
    """Read and set the configuration of a module."""


@config.command("get")
@module_argument(several=False)
@click.argument("key", required=False, shell_complete=complete_keys)
@answers
def get(invocation: Invocation, module: str, key: str | None) -> int:
    """Show the configuration of a module.

    With KEY its value alone. Secrets are masked.
    """
    params = {"module_id": module} | ({"key": key} if key is not None else {})
    entries = _ask(invocation, "get_config", params, invocation.read_timeout)["config"]
    if key is not None:
        invocation.show(entries[key], lambda: value_text(entries[key]["value"]), key)
    elif invocation.output == "json":
        print(indented(entries))
    elif invocation.output == "jsonl":
        for name, entry in entries.items():
            print(compact({"key": name, **entry}))
    elif invocation.output == "name":
        print(*entries, sep="\n", end="\n" if entries else "")
    else:
        print(*_table(invocation, entries), sep="\n")
    return DONE


@config.command("set")
@module_argument(several=False)
@click.argument("key", shell_complete=complete_keys)
@click.argument("value")
@answers
def set_value(invocation: Invocation, module: str, key: str, value: str) -> int:
    """Set one KEY of a module.

    VALUE is taken as JSON if it reads as JSON, else as text. Text that looks like JSON: '"5000"'.
    """
    params = {"module_id": module, "key": key, "value": as_value(value)}
    result = _ask(invocation, "configure", params, invocation.action_timeout + GRACE_S)
    invocation.show(result, lambda: _set(result), key)
    return DONE


def as_value(text: str) -> Any:
    """JSON if it parses. NaN and Infinity are Python's idea of JSON, so they are text here."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _ask(invocation: Invocation, method: str, params: dict[str, Any], timeout: float) -> Any:
    with invocation.client(timeout) as client:
        try:
            return client.call(method, params)
        except RpcError as error:
            raise with_near_match(client, error) from None


def _table(invocation: Invocation, entries: dict[str, dict[str, Any]]) -> list[str]:
    if not entries:
        return ["no configuration keys"]
    heading = ("KEY", "VALUE", "DEFAULT", "TYPE", "RANGE", "APPLY", "DESCRIPTION")
    return columns([heading, *(_row(key, entry) for key, entry in entries.items())], invocation.page)


def _row(key: str, entry: dict[str, Any]) -> tuple[str, ...]:
    default = "" if entry.get("source") == "default" else value_text(entry.get("default"))
    bounds = [value_text(entry[end]) if entry.get(end) is not None else "" for end in ("min", "max")]
    span = " … ".join(bounds).strip() if any(bounds) else ""
    described = str(entry.get("description") or "")
    return key, value_text(entry["value"]), default, str(entry["type"]), span, str(entry["apply"]), described


def _set(result: dict[str, Any]) -> str:
    change = f"{value_text(result.get('previous'))} -> {value_text(result['value'])}"
    applied = APPLIED.get(result["applied"], result["applied"])
    return f"{result['module_id']} {result['key']}: {change}, {applied}"
