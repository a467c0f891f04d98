"""`metrics`: what the daemon would tell Prometheus, as text."""

from __future__ import annotations

import click

from nexusctl.commands.options import answers, module_argument
from nexusctl.exits import DONE
from nexusctl.invocation import GRACE_S, Invocation


@click.command()
@module_argument(required=False, several=False)
@answers
def metrics(invocation: Invocation, module: str | None) -> int:
    """Print metrics in Prometheus's text format, of all or of one MODULE.

    The same as http://127.0.0.1:9090/metrics. `-o json` has the text with its content type.
    """
    with invocation.client(invocation.read_timeout + GRACE_S) as client:
        told = client.call("get_metrics", {"module_id": module} if module else {})
    if invocation.is_json:
        invocation.show(told, str)
    else:
        click.echo(told["text"], nl=False)
    return DONE
