"""The command line: nexusctl's commands put together, and what click says of a wrong one."""

from __future__ import annotations

import sys

import click

from nexusctl.commands import (
    aeon,
    audit,
    chaos,
    config,
    daemon,
    health,
    lifecycle,
    metrics,
    new,
    reexec,
    rpc,
    status,
    systemd,
    upkeep,
    watch,
)
from nexusctl.commands.names import Commands
from nexusctl.commands.options import shared_options
from nexusctl.exits import INTERRUPTED, MEANINGS, USAGE
from nexusctl.health import UNKNOWN

VERSION = "2.0.0"  # of the whole project; a test holds it equal to nexusd's


class Nexusctl(Commands):
    """The group of all commands, whose help ends with the exit statuses."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            formatter.write_dl([(f"{number:>3}", meaning) for number, meaning in MEANINGS.items()])


@click.group(
    cls=Nexusctl,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
)
@shared_options
@click.version_option(VERSION, message="nexusctl %(version)s")
def nexusctl(**_: object) -> None:
    """Look after the modules of a nexusd on this host.

    MODULE is an id such as vitals/heartbeat-client, or a quoted pattern such as 'vitals/*'. Several may be
    given and are handled at once. Data goes to stdout, everything else to stderr.
    """


for command in (
    status.status,
    health.health,
    lifecycle.start,
    lifecycle.stop,
    lifecycle.restart,
    lifecycle.reload,
    upkeep.scale,
    upkeep.heal,
    config.config,
    watch.logs,
    watch.events,
    audit.audit,
    metrics.metrics,
    status.modules,
    chaos.chaos,
    new.check,
    new.new,
    daemon.whoami,
    daemon.shutdown,
    reexec.reexec,
    rpc.rpc,
    aeon.aeon,
    systemd.systemd,
    daemon.completion,
):
    nexusctl.add_command(command)


def run_command(arguments: list[str]) -> int:
    """Run one command line and give its exit status; click would turn some of them into others."""
    try:
        status = nexusctl.main(arguments, prog_name="nexusctl", standalone_mode=False)
    except click.ClickException as error:
        print(f"nexusctl: {error.format_message()}", file=sys.stderr)
        if isinstance(error, click.UsageError):
            print(f"next: {error.ctx.command_path if error.ctx else 'nexusctl'} --help", file=sys.stderr)
        # What reads the status of `health` would take USAGE for CRITICAL.
        context = getattr(error, "ctx", None)
        return UNKNOWN if context is not None and context.info_name == "health" else USAGE
    except click.Abort:
        return INTERRUPTED
    return status if isinstance(status, int) else 0
