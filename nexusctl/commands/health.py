"""`health` on the command line. A plain one does not come this way: see __main__.py."""

from __future__ import annotations

import click

from nexusctl.commands.options import answers
from nexusctl.health import show_health
from nexusctl.invocation import Invocation


@click.command()
@click.option(
    "-v", "--verbose", is_flag=True, help="Say so when all is well, too; else a line for each module."
)
@click.option("--perfdata", is_flag=True, help="Add figures as Nagios reads them; a line in any case.")
@answers
def health(invocation: Invocation, verbose: bool, perfdata: bool) -> int:
    """Print nothing if all is well, else one line: for cron and Nagios.

    The exit status is Nagios's: 0 OK; 1 WARNING, some modules are not healthy; 2 CRITICAL, nexusd is not ready or
    does not answer; 3 UNKNOWN, you may not ask, or asked wrongly. All of it takes 2 seconds at most, or --timeout.
    """
    return show_health(invocation, verbose, perfdata)
