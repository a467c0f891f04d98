"""`aeon link`: puts nexusd's interface where AEON looks for it, proves that it works there, takes it away again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from nexusctl.aeon_layout import TAKEN, THERE, Layout, make, make_executable, undo
from nexusctl.aeon_record import BadRecord
from nexusctl.commands.options import answers
from nexusctl.exits import DENIED, DONE, FAILED
from nexusctl.invocation import Invocation

PATIENCE_S = 30.0


@click.group()
def aeon() -> None:
    """Connect nexusd with AEON."""


@aeon.command()
@click.option(
    "--prefix",
    default="/aeon",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where AEON lies.  [default: /aeon]",
)
@click.option("--check", is_flag=True, help="Make nothing, only look whether all is there and loads.")
@click.option("--undo", "is_undo", is_flag=True, help="Remove exactly what `aeon link` has made.")
@answers
def link(invocation: Invocation, prefix: Path, check: bool, is_undo: bool) -> int:
    """Put the interface's files where AEON expects them.

    That is links in DIR/interfaces/python/nexus and DIR/runtime/python, each tried out afterwards. What stands
    there already is never overwritten. DIR must be root's or yours, from / down, and for no others to write to.
    """
    layout = Layout(Path(os.path.abspath(prefix)))
    try:
        if fault := layout.stranger() or ("" if is_undo else layout.foreign_code()):
            return _refused(fault)
        if is_undo:
            return _undone(invocation, layout)
        return _checked(invocation, layout) if check else _linked(invocation, layout)
    except BadRecord as error:
        click.echo(f"nexusctl: {error}; nothing was done", err=True)
        return FAILED
    except OSError as error:
        click.echo(f"nexusctl: {error.filename or prefix}: {error.strerror or error}", err=True)
        return DENIED if isinstance(error, PermissionError) else FAILED


def _refused(fault: str) -> int:
    """Who controls a part of the prefix could have us run anything, and make and remove things anywhere."""
    whom = "root" if os.geteuid() == 0 else "root and you"
    click.echo(f"nexusctl: {fault}; nothing was done", err=True)
    click.echo(
        f"only {whom} may control what is used here: chown or chmod it, or run this as its owner", err=True
    )
    return FAILED


def _linked(invocation: Invocation, layout: Layout) -> int:
    """All of it, or nothing where something else stands in the way."""
    links, former = layout.links(), layout.made()
    taken = [one for one in links if one.state(former) == TAKEN]
    for one in taken:
        click.echo(f"nexusctl: {one.path} is there and does not lead to {one.target}", err=True)
    if taken:
        click.echo("nothing was made; move it away, then try again", err=True)
        return FAILED
    missing = [one for one in links if one.state(former) != THERE]
    make(layout, missing)
    make_executable(layout)
    return _checked(invocation, layout, frozenset(one.path for one in missing))


def _checked(invocation: Invocation, layout: Layout, made: frozenset[Path] = frozenset()) -> int:
    known = layout.made()
    links = [
        {
            "path": str(one.path),
            "target": str(one.target),
            "state": "made" if one.path in made else one.state(known),
        }
        for one in layout.links()
    ]
    is_linked = all(one["state"] in (THERE, "made") for one in links)
    trials = [{"trial": name, "fault": fault} for name, fault in (_trials(layout) if is_linked else ())]
    faults = [one for one in trials if one["fault"]]
    found = {"prefix": str(layout.prefix), "links": links, "trials": trials}
    invocation.show(found, lambda: "\n".join(_page(found)))
    if not is_linked:
        way = f"nexusctl aeon link --prefix {layout.prefix}"
        click.echo(f"nexusctl: not linked, or not all of it\nnext: {way}", err=True)
    return DONE if is_linked and not faults else FAILED


def _undone(invocation: Invocation, layout: Layout) -> int:
    removed, left = undo(layout)
    lines = [*(f"removed  {path}" for path in removed), *(f"left     {path}" for path in left)]
    said = "\n".join(lines) or f"nothing below {layout.prefix} was made by nexusctl aeon link"
    invocation.show({"prefix": str(layout.prefix), "removed": removed, "left": left}, lambda: said)
    return DONE


def _page(found: dict[str, Any]) -> Iterator[str]:
    for one in found["links"]:
        yield f"{one['state']:8} {one['path']} -> {one['target']}"
    for one in found["trials"]:
        yield f"{'fails' if one['fault'] else 'loads':8} {one['trial']}{one['fault'] and ': ' + one['fault']}"


def _trials(layout: Layout) -> Iterator[tuple[str, str]]:
    """Each way in which AEON uses the files, and what went wrong with it, if anything."""
    alone = ("-I", "-S")  # the standard library and what lies there, whatever is installed
    for path in layout.programs():
        bare = "" if os.access(path, os.X_OK) else f"not executable: chmod a+x {os.path.realpath(path)}"
        yield str(path), bare or _fault(*alone, path, "--help")
    yield "from nexus import get_status", _import_fault(alone, layout.interfaces, "nexus", "get_status")
    dotted = f"{layout.prefix.name}.interfaces.python.nexus"
    fault = _import_fault(alone, layout.prefix.parent, dotted, "get_status")
    yield f"from {dotted} import get_status", fault
    if layout.has_daemon:
        fault = _import_fault(("-I",), layout.runtime, "nexus_v2_enterprise", "UniversalDaemon")
        yield "from nexus_v2_enterprise import UniversalDaemon", fault


def _import_fault(options: tuple[str, ...], folder: Path, module: str, name: str) -> str:
    """With nothing else of the folder in reach: beside /tmp/aeon, anybody could put a json.py."""
    first = module.partition(".")[0]
    top = folder / first if (folder / first).exists() else folder / f"{first}.py"
    with tempfile.TemporaryDirectory() as own:
        if top.name:  # not so for /
            (Path(own) / top.name).symlink_to(top)
        code = f"import sys; sys.path.insert(0, {own!r}); from {module} import {name}"
        return _fault(*options, "-c", code)


def _fault(*arguments: object) -> str:
    """The last line of a Python that failed; empty when it did not."""
    command = [sys.executable, "-B", *map(str, arguments)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no end within {PATIENCE_S:g} s"
    said = ended.stderr.strip().splitlines()
    return (said[-1] if said else f"exit status {ended.returncode}") if ended.returncode else ""
