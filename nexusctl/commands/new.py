"""`new` writes the folder of a module that works as it stands; `check` has nexusd judge module folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from nexusctl.client import RpcError
from nexusctl.commands.options import answers
from nexusctl.exits import DONE, FAILED
from nexusctl.invocation import Invocation
from nexusctl.module_files import exec_module, is_module_id, python_module
from nexusctl.unreachable import Unreachable


@click.command()
@click.argument("module_id", metavar="GROUP/NAME")
@click.option("--exec", "as_program", is_flag=True, help="A program (here a shell script) instead of Python.")
@click.option(
    "--into",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    help="The folder of modules.  [default: the current one]",
)
@answers
def new(invocation: Invocation, module_id: str, as_program: bool, into: Path) -> int:
    """Write a new, working module.

    It goes to DIR/GROUP/NAME and says every second that it is alive.
    """
    if not is_module_id(module_id):
        raise click.UsageError(f"{module_id!r} is no module id: GROUP/NAME, as vitals/my-module")
    folder = into / module_id
    files = exec_module(module_id) if as_program else python_module(module_id)
    try:
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755 if text.startswith("#!") else 0o644)
    except FileExistsError:
        click.echo(f"nexusctl: {folder} is there already", err=True)
        return FAILED
    except OSError as error:
        click.echo(f"nexusctl: cannot write {folder}: {error.strerror}", err=True)
        return FAILED
    click.echo(str(folder))
    click.echo(f"next: {_next_step(invocation, into)}", err=True)
    return DONE


def _next_step(invocation: Invocation, into: Path) -> str:
    """What has the daemon find the new module, as far as the daemon can be asked where it looks."""
    try:
        with invocation.client() as client:
            paths = client.call("get_status").get("module_paths")
    except (RpcError, Unreachable):
        paths = None
    if not paths:
        return f"nexusctl check {into}; it starts with a nexusd that has {into.resolve()} among its modules"
    if into.resolve() in [Path(path).resolve() for path in paths]:
        return "nexusctl reload"
    return f"move it below {folder_of_ones_own(paths)}, then nexusctl reload"


def folder_of_ones_own(paths: Sequence[str]) -> str:
    """The last that may be written to and holds no examples; nexusd may run as another user, who may."""
    own = [path for path in paths if "examples" not in Path(path).parts] or list(paths)
    return ([path for path in own if os.access(path, os.W_OK)] or own)[-1]


@click.command()
@click.argument("directories", nargs=-1, metavar="[DIR]...", type=click.Path())
@answers
def check(invocation: Invocation, directories: tuple[str, ...]) -> NoReturn:
    """Check the manifests of all modules.

    Those in the folders DIR, by default where nexusd looks. No daemon is needed.
    """
    ours = str(Path(__file__).resolve().parents[2])  # nexusd lies beside nexusctl, installed or not
    search = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    sys.stdout.flush()
    form = ["--json"] if invocation.is_json else []
    command = [sys.executable, "-P", "-m", "nexusd", "check", *form, *directories]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": search})
