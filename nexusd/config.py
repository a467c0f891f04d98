"""nexusd.toml, the command line and the environment, as one frozen value. It does nothing when built.

Order: command line, environment, file, default. Reading the file is `read_config`; acting on it is others'.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import msgspec

from nexusd.domain.access import Grants
from nexusd.domain.addresses import parse_host_port
from nexusd.domain.decoding import prepare
from nexusd.domain.fields import Fault, Reading
from nexusd.domain.health import MOST_UNHEALTHY
from nexusd.domain.units import Size, parse_unit

LogFormat = Literal["text", "json", "journal"]
OnStop = Literal["stop-modules", "leave-modules"]
_Roles = Annotated[
    dict[str, tuple[str, ...]], msgspec.Meta(title="a table of names, each with a list of names")
]

_PORT = r"(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
_LISTEN = rf"^(off|(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):{_PORT})\Z"
_Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may do what: users and groups hold roles, roles hold permissions."""

    roles: _Roles = {}
    users: _Roles = {}
    groups: _Roles = msgspec.field(default_factory=lambda: {"nexus": ("operator",)})

    def grants(self, daemon_uid: int) -> Grants:
        return Grants(self.roles, self.users, self.groups, daemon_uid)


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where Prometheus finds its page."""

    listen: Annotated[str, msgspec.Meta(pattern=_LISTEN, title='"HOST:PORT" or "off"')] = "127.0.0.1:9090"

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None where none is wanted."""
        return None if self.listen == "off" else parse_host_port(self.listen, lowest=0)


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the daemon counts as ready: every critical module is healthy, and at most this share of all is not."""

    most_unhealthy: Annotated[float, msgspec.Meta(ge=0, le=1)] = MOST_UNHEALTHY


class Api(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the API socket."""

    group: str = "nexus"
    message_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 1 << 20
    batch: _Count = 100
    in_flight: _Count = 64
    connections: _Count = 1024
    user_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    request_timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    unsent_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 1 << 20


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the audit log is kept, and whether reading is told of too."""

    max_size: Size = Size(10 << 20)
    files: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 10
    reads: bool = False


class Daemon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How nexusd keeps its modules; on_stop: what becomes of them when it is asked by a signal to end."""

    on_stop: OnStop = "stop-modules"
    cgroups: Literal["auto", "off"] = "auto"
    journald: str = "/run/systemd/journal"


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may stand in nexusd.toml."""

    socket: str | None = None
    modules: tuple[str, ...] | None = None
    runtime: str | None = None
    state: str | None = None
    logs: str | None = None
    log_format: LogFormat | None = None
    access: Access = Access()
    api: Api = Api()
    health: Health = Health()
    metrics: Metrics = Metrics()
    audit: Audit = Audit()
    daemon: Daemon = Daemon()


prepare(File)


class InvalidConfig(Exception):
    """nexusd.toml can't be used; `faults` has all that is wrong in it."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line gave; None or empty where it gave nothing."""

    config: str | None = None
    modules: tuple[str, ...] = ()
    socket: str | None = None
    runtime: str | None = None
    state: str | None = None
    logs: str | None = None
    log_format: LogFormat | None = None


@dataclass(frozen=True, slots=True)
class Config:
    config_path: str
    modules: tuple[str, ...]
    socket: str
    runtime: str
    state: str
    logs: str
    log_format: LogFormat
    access: Access
    api: Api
    health: Health
    metrics: Metrics
    audit: Audit
    daemon: Daemon


IN_FORCE_ON_RELOAD = ("access", "health")


def changed_since(start: Config, before: Config, now: Config) -> dict[str, list[str]]:
    """The names of nexusd.toml's keys and tables that a reload puts in force, and that wait for a restart."""
    waiting = [one.name for one in fields(Config) if one.name not in (*IN_FORCE_ON_RELOAD, "config_path")]
    return {
        "in_force": [one for one in IN_FORCE_ON_RELOAD if getattr(before, one) != getattr(now, one)],
        "waits_for_restart": [one for one in waiting if getattr(start, one) != getattr(now, one)],
    }


@dataclass(frozen=True, slots=True)
class Folders:
    """The defaults of one kind of user."""

    config: str
    modules: str
    socket: str
    runtime: str
    state: str
    logs: str


def folders(uid: int, environment: Mapping[str, str]) -> Folders:
    """root has the system's folders, any other user those of the XDG base directories; a unit of systemd its own."""
    usual = _usual_folders(uid, environment)
    given = {name: environment[f"{name.upper()}_DIRECTORY"].partition(":")[0] for name in _given(environment)}
    etc = given.pop("configuration", None)  # systemd.exec(5)
    if etc is not None:
        given |= {"config": f"{etc}/nexusd.toml", "modules": f"{etc}/modules"}
    return replace(usual, **given)


def _given(environment: Mapping[str, str]) -> list[str]:
    names = ("configuration", "runtime", "state", "logs")
    return [name for name in names if environment.get(f"{name.upper()}_DIRECTORY")]


def _usual_folders(uid: int, environment: Mapping[str, str]) -> Folders:
    if uid == 0:
        etc = "/etc/nexus"
        return Folders(
            f"{etc}/nexusd.toml",
            f"{etc}/modules",
            "/run/nexus.sock",
            "/run/nexus",
            "/var/lib/nexus",
            "/var/log/nexus",
        )
    home = environment.get("HOME", "/")
    runtime = environment.get("XDG_RUNTIME_DIR")
    runtime = f"{runtime}/nexus" if runtime else f"/tmp/nexus-{uid}"
    settings = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
    state = environment.get("XDG_STATE_HOME") or f"{home}/.local/state"
    return Folders(
        f"{settings}/nexus/nexusd.toml",
        f"{settings}/nexus/modules",
        f"{runtime}/nexus.sock",
        runtime,
        f"{state}/nexus",
        f"{state}/nexus/logs",
    )


def read_config(options: Options, environment: Mapping[str, str], uid: int) -> Config:
    """Raises InvalidConfig. A file that was asked for must be there, the default one need not."""
    defaults = folders(uid, environment)
    path = options.config or environment.get("NEXUS_CONFIG_FILE") or defaults.config
    file = _read_file(path, must_exist=path != defaults.config)
    modules = environment.get("NEXUS_MODULES")

    def first(name: str) -> str:
        given = getattr(options, name) or environment.get(f"NEXUS_{name.upper()}") or getattr(file, name)
        return os.path.abspath(given or getattr(defaults, name))

    return Config(
        config_path=path,
        modules=tuple(
            os.path.abspath(folder)
            for folder in options.modules
            or (modules.split(":") if modules else None)
            or file.modules
            or (defaults.modules,)
        ),
        socket=first("socket"),
        runtime=first("runtime"),
        state=first("state"),
        logs=first("logs"),
        log_format=options.log_format or file.log_format or "text",
        access=file.access,
        api=file.api,
        health=file.health,
        metrics=file.metrics,
        audit=file.audit,
        daemon=file.daemon,
    )


def _read_file(path: str, *, must_exist: bool) -> File:
    try:
        with open(path, "rb") as opened:
            raw = tomllib.load(opened)
    except FileNotFoundError as error:
        if not must_exist:
            return File()
        raise InvalidConfig((Fault(path, "", "a file", "nothing", None),)) from error
    except OSError as error:
        raise InvalidConfig((Fault(path, "", "a readable file", str(error.strerror), None),)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig((Fault(path, "", "TOML", str(error), None),)) from error
    return _converted(raw, path)


def _converted(raw: dict[str, Any], path: str) -> File:
    try:
        return msgspec.convert(raw, File, dec_hook=parse_unit)
    except msgspec.ValidationError as error:
        raise InvalidConfig(_faults(raw, path, str(error))) from error


def _faults(raw: dict[str, Any], path: str, otherwise: str) -> tuple[Fault, ...]:
    faults = tuple(Reading(raw, File, path).faults)
    return faults or (Fault(path, "", "a configuration", otherwise, None),)
