"""`systemd install|uninstall|status`: nexusd as a service of systemd, with the paths of this installation.

What stands in the files is decided in `unit_files`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import click

from nexusctl.commands.options import answers
from nexusctl.exits import DENIED, DONE, FAILED, NOT_RUNNING
from nexusctl.invocation import Invocation
from nexusctl.output import clean
from nexusctl.unit_files import DROP_IN, MISSING, THERE, UNITS, UnitFile, remove, unit_files, write

PATIENCE_S = 120.0
STARTED = ("nexusd.socket", "nexusd.service", "nexus-health.timer")
NOT_USED = "not used"
_SHOWN = ("LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "StatusText")

root = click.option(
    "--root",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="For packagers: put the files below DIR/usr/lib, and leave this host alone.",
)
unprivileged = click.option(
    "--unprivileged", is_flag=True, help="Run nexusd and its modules as the user nexus, by a drop-in."
)


@click.group()
def systemd() -> None:
    """Run nexusd as a service of systemd."""


@systemd.command()
@root
@unprivileged
@answers
def install(invocation: Invocation, root: Path | None, unprivileged: bool) -> int:
    """Put units, socket, timer, user and folders in place, for the programs of this installation.

    Nothing is started: that is said at the end. A file that is there already is written anew.
    """
    files = unit_files(root, unprivileged)
    before = {file.path: file.state for file in files}
    try:
        for file in files:
            write(file)
    except OSError as error:
        return _refused(error)
    told = [("kept" if before[file.path] == THERE else "wrote", str(file.path)) for file in files]
    told += [] if root else _made_known(files)
    following = None if root else f"systemctl enable --now {' '.join(STARTED)}"
    done = {"files": [str(file.path) for file in files], "done": _said(told)}
    invocation.show({**done, "next": following}, lambda: _page(told, following))
    return FAILED if any(verb == "failed" for verb, _ in told) else DONE


def _made_known(files: list[UnitFile]) -> list[tuple[str, str]]:
    """User, folders and units, to whom they concern."""
    path = {file.path.parent.name: str(file.path) for file in files}
    commands = [
        ["systemd-sysusers", path["sysusers.d"]],
        ["systemd-tmpfiles", "--create", path["tmpfiles.d"]],
        ["systemctl", "daemon-reload"],
    ]
    return [_ran(command) for command in commands]


@systemd.command()
@root
@click.option(
    "--force", is_flag=True, help="Remove the files also of what could not be stopped and disabled."
)
@answers
def uninstall(invocation: Invocation, root: Path | None, force: bool) -> int:
    """Stop and disable the service and its modules, and remove what `systemd install` put in place.

    State, logs, configuration and the user nexus stay. So does every file where the service could not be stopped.
    """
    files = unit_files(root, unprivileged=True)
    stopped = [] if root else _stopped(files)
    if any(verb == "failed" for verb, _ in stopped) and not force:
        following = "nexusctl systemd uninstall --force removes the files all the same"
        kept = {"removed": [], "done": _said(stopped), "next": following}
        invocation.show(kept, lambda: _page(stopped, following))
        return FAILED
    try:
        removed = [str(file.path) for file in files if remove(file)]
    except OSError as error:
        return _refused(error)
    made_known = [] if root else [_ran(["systemctl", "daemon-reload"])]
    told = [*stopped, *(("removed", path) for path in removed), *made_known]
    done = {"removed": removed, "done": _said(told), "next": None}
    invocation.show(done, lambda: _page(told, None))
    return FAILED if any(verb == "failed" for verb, _ in made_known) else DONE


def _stopped(files: list[UnitFile]) -> list[tuple[str, str]]:
    """systemctl refuses to disable what is not there."""
    there = {file.path.name for file in files if file.state != MISSING}
    units = [unit for unit in STARTED if unit in there]
    return [_ran(["systemctl", "disable", "--now", *units])] if units else []


def _said(told: list[tuple[str, str]]) -> list[str]:
    return [f"{verb} {what}" for verb, what in told]


@systemd.command()
@root
@answers
def status(invocation: Invocation, root: Path | None) -> int:
    """Show which files are in place and, of this host, how systemd sees the units.

    The exit status is 0 where all that is needed is there and nexusd runs, else 3.
    """
    files = unit_files(root, unprivileged=True)
    states = [(_state(file), str(file.path)) for file in files]
    units = [] if root else [_seen(unit) for unit in UNITS]
    found = {"files": [{"path": path, "state": state} for state, path in states], "units": units}
    invocation.show(found, lambda: _page([*states, *((one["state"], one["text"]) for one in units)], None))
    is_active = bool(root) or any(one["unit"] == UNITS[0] and one["active"] for one in units)
    is_whole = all(state in (THERE, NOT_USED) for state, _ in states)
    return DONE if is_active and is_whole else NOT_RUNNING


def _state(file: UnitFile) -> str:
    """The drop-in is for those who asked for it."""
    return NOT_USED if file.state == MISSING and file.path.match(DROP_IN) else file.state


def _seen(unit: str) -> dict[str, str]:
    """What systemd says of one unit; nothing of it where there is no systemd."""
    shown = _output(["systemctl", "show", unit, *(f"--property={name}" for name in _SHOWN)])
    facts = dict(line.partition("=")[::2] for line in shown.splitlines())
    state = facts.get("ActiveState", "unknown")
    text = f"{unit} ({facts.get('SubState', '-')}, {facts.get('UnitFileState') or 'not enabled'})"
    if facts.get("StatusText"):
        text += f": {clean(facts['StatusText'])}"
    return {"unit": unit, "state": state, "active": "yes" if state == "active" else "", "text": text, **facts}


def _output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return ran.stdout


def _ran(command: list[str]) -> tuple[str, str]:
    words = " ".join(command)
    if shutil.which(command[0]) is None:
        return "skipped", f"{words}: it is not installed"
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:  # a stop takes as long as the modules' own time-outs
        return "failed", f"{words}: not done within {PATIENCE_S:g} s"
    return ("ran", words) if ran.returncode == 0 else ("failed", f"{words}: {clean(ran.stderr.strip())}")


def _refused(error: OSError) -> int:
    click.echo(f"nexusctl: {error.filename}: {os.strerror(error.errno or 0)}", err=True)
    return DENIED if isinstance(error, PermissionError) else FAILED


def _page(told: list[tuple[str, str]], following: str | None) -> str:
    lines = [f"{verb:10} {what}" for verb, what in told]
    return "\n".join([*lines, *([f"next: {following}"] if following else [])] or ["nothing was there"])
