"""Commands about the daemon and its caller rather than a module: whoami, shutdown, completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from nexusctl.commands.options import answers
from nexusctl.exits import DONE
from nexusctl.invocation import Invocation
from nexusctl.output import clean, pairs
from nexusctl.unreachable import TIMED_OUT, Unreachable, unanswered


@click.command()
@answers
def whoami(invocation: Invocation) -> int:
    """Show as whom the daemon knows you, and what you may do."""
    with invocation.client() as client:
        who = client.call("whoami")
    facts = [
        ("principal", clean(who["principal"])),
        ("uid, gid", f"{who['uid']}, {who['gid']}"),
        ("groups", ", ".join(who["groups"]) or "-"),
        ("roles", ", ".join(who["roles"]) or "-"),
        ("permissions", ", ".join(who["permissions"]) or "-"),
    ]
    invocation.show(who, lambda: "\n".join(pairs(facts, indent="")), clean(who["principal"]))
    return DONE


@click.command()
@click.option("--no-wait", is_flag=True, help="Ask for it and return at once.")
@answers
def shutdown(invocation: Invocation, no_wait: bool) -> int:
    """Stop all modules, then the daemon, and wait until it has gone."""
    patience = invocation.action_timeout
    with invocation.client(patience) as client:
        result = client.call("shutdown")
        while not no_wait:
            try:
                client.next_notification(timeout=patience)
            except Unreachable as error:
                if error.cause == TIMED_OUT:
                    raise unanswered(invocation.socket, "shutdown", patience) from None
                break
    done = "nexusd is shutting down" if no_wait else "nexusd has shut down"
    invocation.show(result, lambda: done, "nexusd")
    return DONE


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print a shell's completion script.

    For bash: source <(nexusctl completion bash)
    """
    completer = get_completion_class(shell)
    assert completer is not None  # click has all three
    click.echo(completer(context.find_root().command, {}, "nexusctl", "_NEXUSCTL_COMPLETE").source())
    return DONE
