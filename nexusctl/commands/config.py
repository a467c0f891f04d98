"""`config get`, `config set` and `config unset`: a module's typed configuration values."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from getpass import getpass
from typing import Any, NoReturn

import click

from nexusctl.client import Client, RpcError
from nexusctl.commands.names import Commands
from nexusctl.commands.options import answers, complete_keys, module_argument
from nexusctl.complaint import complain
from nexusctl.exits import DONE, worst
from nexusctl.invocation import GRACE_S, Invocation
from nexusctl.output import clean, compact, fitting, indented, value_text, with_notes
from nexusctl.selection import is_single, selected, with_near_match

BAD_VALUE = -32004
HEADING = ("KEY", "VALUE", "DEFAULT", "TYPE", "RANGE", "APPLY")
APPLIED = {
    "live": "applied at once",
    "reload": "applied by a reload",
    "restart": "applied by a restart",
    "stored": "stored until the module starts",
    "none": "which is the default already",
}


@click.group(cls=Commands, no_args_is_help=False)
def config() -> None:
    """Read and set the configuration of a module."""


@config.command("get")
@module_argument(several=False)
@click.argument("key", required=False, shell_complete=complete_keys)
@answers
def get(invocation: Invocation, module: str, key: str | None) -> int:
    """Show the configuration of a module, or of all that a pattern means.

    With KEY its value alone. Secrets are masked.
    """
    if not is_single([module]):
        return _get_several(invocation, module, key)
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


def _get_several(invocation: Invocation, pattern: str, key: str | None) -> int:
    """The modules that a pattern means; with a key, those of them that have it."""
    with invocation.client() as client:
        ids = selected(client, [pattern])
        answers, statuses = _each(
            invocation, client, "get_config", "read the configuration of", {one: {} for one in ids}
        )
    if key is not None:
        answers = [{**one, "config": {key: one["config"][key]}} for one in answers if key in one["config"]]
        if not answers and not any(statuses):
            data = {"kind": "bad_value", "hint": f"nexusctl config get '{pattern}'"}
            raise RpcError(BAD_VALUE, f"no module that matches {pattern} has a configuration key {key}", data)
    if invocation.output == "json":
        print(indented(answers))
        return worst(statuses)
    entries = {(one["module_id"], name): entry for one in answers for name, entry in one["config"].items()}
    if invocation.output == "jsonl":
        for (module_id, name), entry in entries.items():
            print(compact({"module_id": module_id, "key": name, **entry}))
    elif invocation.output == "name":
        print(*(one["module_id"] for one in answers), sep="\n", end="\n" if answers else "")
    else:
        print(*_table_of_several(invocation, entries), sep="\n")
    return worst(statuses)


@config.command("set")
@module_argument(several=False)
@click.argument("key", shell_complete=complete_keys)
@click.argument("value", required=False)
@answers
def set_value(invocation: Invocation, module: str, key: str, value: str | None) -> int:
    """Set one KEY of a module, or of each that a pattern means.

    VALUE is text where KEY is of type str, else it is JSON, or text if it does not read as JSON.
    A secret belongs into no command line, which others can see: - reads the value from stdin, and without a VALUE
    it is asked for on the terminal. Both are taken to the letter for a str, quotes and all.
    """
    text, is_literal = _given(value, module, key), value in (None, "-")

    def params(client: Client, module_id: str) -> dict[str, Any]:
        return {"key": key, "value": _typed(client, module_id, key, text, is_literal)}

    return _change(invocation, module, key, "configure", params)


@config.command("unset")
@module_argument(several=False)
@click.argument("key", shell_complete=complete_keys)
@answers
def unset(invocation: Invocation, module: str, key: str) -> int:
    """Take one KEY of a module, or of each that a pattern means, back to its default.

    That is the default of the manifest, of a later one, too. It is put in force as a value is that is set.
    """
    return _change(invocation, module, key, "unset_config", lambda *_: {"key": key})


def _change(
    invocation: Invocation,
    module: str,
    key: str,
    method: str,
    params: Callable[[Client, str], dict[str, Any]],
) -> int:
    patience = invocation.action_timeout + GRACE_S
    with invocation.client(patience) as client:
        wanted = {one: params(client, one) for one in selected(client, [module])}
        if not is_single([module]):
            results, statuses = _each(invocation, client, method, "configure", wanted)
    if is_single([module]):
        result = _ask(invocation, method, {"module_id": module, **wanted[module]}, patience)
        invocation.show(result, lambda: _set(result), key)
        return DONE
    if invocation.output == "json":
        print(indented(results))
    else:
        for result in results:
            invocation.show(result, partial(_set, result), result["module_id"])
    return worst(statuses)


def _given(value: str | None, module: str, key: str) -> str:
    """The value, which need not stand on the command line."""
    if value is None and sys.stdin.isatty():
        return getpass(f"{module} {key}: ")
    if value is None:
        raise click.UsageError("the value is missing; - reads it from stdin")
    return sys.stdin.read().removesuffix("\n") if value == "-" else value


def _typed(client: Client, module_id: str, key: str, text: str, is_literal: bool) -> Any:
    """The value that the text means for this key. On the command line quotes go, as they always did: '"5000"'."""
    value = as_value(text)
    if value == text or (isinstance(value, str) and not is_literal):
        return value
    try:
        entries = client.call("get_config", {"module_id": module_id, "key": key})["config"]
    except RpcError:  # no such key, or not to be read by this user: what is wrong with it, configure tells
        return value
    return text if entries.get(key, {}).get("type") == "str" else value


def _each(
    invocation: Invocation, client: Client, method: str, verb: str, wanted: dict[str, dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[int]]:
    """The answers of several modules in their order; what one of them refuses is complained about."""
    requests = [(method, {"module_id": one, **params}) for one, params in wanted.items()]
    outcomes = dict(client.call_many(requests))
    answers, statuses = [], [DONE]
    for place, module_id in enumerate(wanted):
        outcome = outcomes[place]
        if isinstance(outcome, RpcError):
            statuses.append(complain(outcome, invocation.output, verb, module_id))
        else:
            answers.append(outcome)
    return answers, statuses


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
    return _rows_and_notes(
        invocation, [HEADING, *(_row(key, one) for key, one in entries.items())], entries.values()
    )


def _table_of_several(invocation: Invocation, entries: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    rows = [(module_id, *_row(key, one)) for (module_id, key), one in entries.items()]
    return _rows_and_notes(invocation, [("MODULE", *HEADING), *rows], entries.values())


def _rows_and_notes(
    invocation: Invocation, rows: list[tuple[str, ...]], entries: Iterable[dict[str, Any]]
) -> list[str]:
    """The descriptions stand beside the table, or below each row where they are too long for that."""
    page = invocation.page
    notes = [clean(one.get("description") or "") for one in entries]
    if not notes:
        return ["no configuration keys"]
    return with_notes(fitting(rows, page, least=len(rows[0]) - 4), "DESCRIPTION", notes, page)


def _row(key: str, entry: dict[str, Any]) -> tuple[str, ...]:
    default = "" if entry.get("source") == "default" else value_text(entry.get("default"))
    bounds = [value_text(entry[end]) if entry.get(end) is not None else "" for end in ("min", "max")]
    span = " … ".join(bounds).strip() if any(bounds) else ""
    return key, value_text(entry["value"]), default, str(entry["type"]), span, str(entry["apply"])


def _set(result: dict[str, Any]) -> str:
    change = f"{value_text(result.get('previous'))} -> {value_text(result['value'])}"
    if "changed" in result:  # it was unset
        change = f"{change} (the default)" if result["changed"] else value_text(result["value"])
    applied = APPLIED.get(result["applied"], result["applied"])
    return f"{result['module_id']} {result['key']}: {change}, {applied}"
