"""`rpc`: any method of the daemon, its result as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from nexusctl.commands.options import answers
from nexusctl.exits import DONE
from nexusctl.invocation import GRACE_S, Invocation
from nexusctl.output import compact, indented


@click.command()
@click.argument("method")
@click.argument("params", required=False, metavar="[JSON]")
@answers
def rpc(invocation: Invocation, method: str, params: str | None) -> int:
    """Call any method of the daemon.

    JSON is an object or an array of parameters; - reads it from stdin. The result is printed as JSON.
    `nexusctl rpc rpc.discover` lists the methods.
    """
    text = sys.stdin.read() if params == "-" else params
    with invocation.client(invocation.action_timeout + GRACE_S) as client:
        result = client.call(method, _params(text))
    print(compact(result) if invocation.output == "jsonl" else indented(result))
    return DONE


def _params(text: str | None) -> Any:
    if text is None or not text.strip():
        return None
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"the parameters are not JSON: {error}") from None
    if not isinstance(params, dict | list):
        raise click.UsageError("the parameters have to be a JSON object or array")
    return params
