"""argv and configuration in, the daemon wired and run. `nexusd check` validates and does nothing else."""

import argparse
import asyncio
import faulthandler
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from nexusd import __version__
from nexusd.catalogue import judged
from nexusd.config import Config, InvalidConfig, Options, read_config
from nexusd.daemon import UniversalDaemon
from nexusd.domain.access import SecurityContext
from nexusd.domain.errors import NexusError
from nexusd.domain.manifest import Fault, manifest_schema
from nexusd.domain.replacing import Command, command
from nexusd.successor import introduce
from nexusd.sweeping import sweep
from nexusd.system.database import Unusable
from nexusd.system.handover import Handover, jump
from nexusd.system.manifests import MANIFEST, discover, missing_paths, read_module, shadowed
from nexusd.system.notify import Given, take
from nexusd.system.own_log import LoopComplaints, log_to

log = logging.getLogger("nexusd")

_FROM_SYSTEMD = (3,)  # SD_LISTEN_FDS_START
_LONGEST_FIRST_LINE = 4096


def main() -> None:
    arguments = _parser().parse_args()
    options = Options(
        arguments.config,
        tuple(arguments.modules),
        arguments.socket,
        arguments.runtime,
        arguments.state,
        arguments.logs,
        arguments.log_format,
    )
    if arguments.command == "check" and arguments.schema:
        print(json.dumps(manifest_schema(), indent=2))
    elif arguments.command == "check" and arguments.successor:
        sys.exit(introduce_to(arguments.successor, options))
    elif arguments.command == "check":
        sys.exit(_unless_nobody_reads(lambda: check(arguments.folders, options, arguments.json)))
    elif arguments.command == "sweep":
        sys.exit(sweep_up(options))
    else:
        sys.exit(serve(options))


def serve(options: Options) -> int:
    """Exit status: 0 after a clean stop, 1 when it can't run, 2 for a faulty configuration, 10 see on_give_up."""
    try:
        config = read_config(options, os.environ, os.getuid())
    except InvalidConfig as error:
        print(error, file=sys.stderr)
        return 2
    log_to(sys.stderr, config.log_format, config.daemon.journald)
    given = replace(take(os.environ), command=_command())
    if given.watchdog_s is not None:
        faulthandler.enable()  # its SIGABRT has the loop say where it hangs
    if given.api is not None:
        config = replace(config, socket=given.api.getsockname())
    while True:
        try:
            outcome = asyncio.run(_run(config, given))
        except (NexusError, Unusable, OSError) as error:
            log.error("nexusd cannot run: %s", error)
            return 1
        if isinstance(outcome, int):
            return outcome
        given = replace(
            given, handed=outcome, stored={}
        )  # there is no other: this one goes on in its own place


def sweep_up(options: Options) -> int:
    """Exit status: 0 when nothing is left or nothing is to be ended, 1 when something is, 2 as above."""
    try:
        config = read_config(options, os.environ, os.getuid())
    except InvalidConfig as error:
        print(error, file=sys.stderr)
        return 2
    log_to(sys.stderr, config.log_format, config.daemon.journald)
    take(os.environ)
    try:
        count = asyncio.run(sweep(config))
    except (NexusError, OSError) as error:
        log.error("not swept: %s", error)
        return 1
    if count:
        log.warning("ended %d processes of modules that a nexusd left when it was stopped", count)
    return 0


async def _run(config: Config, given: Given) -> int | Handover:
    """The exit status; or, where another nexusd was to take this process over and could not be executed, what it was
    to get."""
    asyncio.get_running_loop().set_exception_handler(LoopComplaints())
    daemon = UniversalDaemon(config=config, given=given)
    await daemon.initialize()
    await daemon.discover_and_load_modules()
    await daemon.start()
    status = await daemon.run()
    if daemon.handover is None or given.command is None:
        return status
    # From within the loop: threads that only read need not be waited for, and all that wrote have been.
    error = jump(
        given.command, daemon.handover, os.environ, given.again(), _FROM_SYSTEMD if given.api else ()
    )
    log.critical(
        "%s cannot be executed, nexusd %s goes on: %s", given.command.program, __version__, error.strerror
    )
    return msgspec.structs.replace(daemon.handover, failure=f"{given.command.program}: {error.strerror}")


def _command() -> Command:
    try:
        with open(sys.argv[0], encoding="utf-8", errors="replace") as file:
            first_line = file.readline(_LONGEST_FIRST_LINE)
    except OSError:
        first_line = ""
    return command(sys.executable, sys.orig_argv, sys.argv, first_line)


def check(folders: list[str], options: Options, as_json: bool = False) -> int:
    """All faults on stdout, of nexusd.toml too where no folder is given; 0 when there are none, else 1.

    A folder is one of modules (DIR/GROUP/NAME/module.toml) or a module itself.
    """
    paths: Sequence[str] = folders
    if not folders:
        try:
            paths = read_config(options, os.environ, os.getuid()).modules
        except InvalidConfig as error:
            print(error)
            return 1
    single = [path for path in paths if os.path.exists(os.path.join(path, MANIFEST))]
    several = [path for path in paths if path not in single]
    found = [*(read_module(Path(path), _id_of(path)) for path in single), *discover(several)]
    faults: list[Fault] = [*missing_paths(several)]
    for one in [*judged(found, SecurityContext()), *shadowed(several)]:
        faults.extend(one.faults)
    if as_json:
        print(json.dumps([msgspec.structs.asdict(fault) for fault in faults], indent=2))
        return 1 if faults else 0
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{len(found)} module{'s' * (len(found) != 1)}, no faults")
    return 1 if faults else 0


def introduce_to(notes_path: str, options: Options) -> int:
    """Whether this nexusd could take over from one that runs: its word for itself on stdout and 0, else 1 or 2."""
    try:
        config = read_config(options, os.environ, os.getuid())
        print(introduce(config, notes_path))
    except InvalidConfig as error:
        print(error, file=sys.stderr)
        return 2
    except (Unusable, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _unless_nobody_reads(work: Callable[[], int]) -> int:
    """`nexusd check | head` ends quietly, with the status that a shell gives to SIGPIPE."""
    try:
        status = work()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at its end
        return 141
    return status


def _id_of(folder: str) -> str:
    """A module's folder says its id by its place: GROUP/NAME."""
    return "/".join(Path(os.path.abspath(folder)).parts[-2:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nexusd", description="Supervises modules; steered by nexusctl.")
    parser.add_argument("--version", action="version", version=f"nexusd {__version__}")
    parser.add_argument("--config", metavar="FILE", help="nexusd.toml")
    parser.add_argument(
        "--modules", metavar="DIR", action="append", default=[], help="may be given several times"
    )
    parser.add_argument("--socket", metavar="PATH", help="the API socket")
    parser.add_argument("--runtime", metavar="DIR", help="sockets and what is gone after a reboot")
    parser.add_argument("--state", metavar="DIR", help="what survives a reboot")
    parser.add_argument("--logs", metavar="DIR", help="what modules write")
    parser.add_argument("--log-format", choices=("text", "json", "journal"))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("sweep", help="end the modules of a nexusd that is dead, as `on_stop` says")
    checking = commands.add_parser("check", help="validate module folders and exit 0 or 1")
    checking.add_argument("folders", metavar="DIR", nargs="*")
    checking.add_argument("--json", action="store_true", help="print the faults as JSON")
    checking.add_argument("--schema", action="store_true", help="print the JSON Schema of module.toml")
    checking.add_argument(
        "--successor", metavar="NOTES", help="asked by `nexusctl reexec`: could this nexusd take over?"
    )
    return parser


if __name__ == "__main__":
    main()
