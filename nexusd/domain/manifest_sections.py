"""What may stand in a module.toml: one frozen class for each section, with the defaults an operator gets.

Rules that concern more than one key stand in `manifest_rules`; reading a file stands in `manifest`.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import force_setattr

from nexusd.domain.units import Seconds, Size

# `$(?!\n)`: Python's `$` also matches before a final newline, JSON Schema's does not.
_END = r"$(?!\n)"
_PART = r"[A-Za-z0-9](?!\S*\.\.)[A-Za-z0-9_.-]{0,63}"
ID_PATTERN = f"^{_PART}/{_PART}{_END}"
ModuleId = Annotated[
    str,
    Meta(pattern=ID_PATTERN, title="a module id such as vitals/heartbeat-client"),
]
Text = Annotated[str, Meta(pattern=r"^[^\x00]*$", title="a string without NUL")]
# Never shown in a fault: environments often hold passwords.
PrivateText = Annotated[
    str, Meta(pattern=r"^[^\x00]*$", title="a string without NUL", extra={"private": True})
]
Name = Annotated[str, Meta(pattern=r"^[^\s\x00]+" + _END, title="a string without spaces")]
KeyName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}" + _END,
        title="a name of letters, digits, _ . - (at most 64)",
    ),
]
VariableName = Annotated[
    str, Meta(pattern=r"^[^=\s\x00]+" + _END, title="the name of an environment variable")
]
PythonTarget = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*:[A-Za-z_][A-Za-z0-9_]*" + _END,
        title="FILE:CLASS, a Python file beside the manifest (without .py) and a class in it",
    ),
]
Command = Annotated[tuple[Text, ...], Meta(min_length=1, title="a list: the program and its arguments")]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# What is remembered of a module's replicas goes to the keeper in one packet, anew at each change.
MOST_REPLICAS = 200

ConfigType = Literal["int", "float", "bool", "str", "duration", "list"]
Bound = Annotated[int | float | str | None, Meta(title="a number or a duration")]


class Run(Struct, frozen=True, forbid_unknown_fields=True):
    """What to run. Exactly one of `python` and `exec`."""

    python: Annotated[
        PythonTarget | None,
        Meta(description="Python file beside the manifest, and a class in it: `file:Class`"),
    ] = None
    exec: Annotated[
        Command | None,
        Meta(description="Program and arguments; a program with a `/` is looked up from the module's folder"),
    ] = None
    interpreter: Annotated[
        Text | None, Meta(description="Python to run `python` with, instead of nexusd's own (a cold start)")
    ] = None
    user: Annotated[
        Name | None, Meta(description="User to run as; a Python module of another user starts cold")
    ] = None
    group: Annotated[Name | None, Meta(description="Group to run as; the same holds")] = None
    directory: Annotated[
        Text | None, Meta(description="Working directory; the module's folder unless given")
    ] = None
    environment: Annotated[
        dict[VariableName, PrivateText], Meta(description="Environment variables to add")
    ] = field(default_factory=dict)
    environment_file: Annotated[
        Text | None, Meta(description="File of `NAME=value` lines to add to the environment")
    ] = None
    listen: Annotated[
        tuple[Text, ...],
        Meta(
            description="Listening sockets opened by nexusd and handed over: `tcp:HOST:PORT`, `unix:/path`, "
            "each with an optional `name=` before it"
        ),
    ] = ()
    ready: Annotated[
        Literal["notify", "started", "health"] | None,
        Meta(
            description="What makes a replica ready: `READY=1`, having been started, or its health check. "
            "`notify` for `python`, `started` for `exec` unless given"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.ready is None:
            force_setattr(self, "ready", "started" if self.python is None else "notify")


class ConfigKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A value that `configure` may set. Every key has a default, so every key always has a value."""

    type: Annotated[
        ConfigType, Meta(description="Type of the value; the module gets a `duration` in seconds")
    ]
    default: Annotated[Any, Meta(description="Value until `configure` sets another")]
    min: Annotated[Bound, Meta(description="Least value, of an int, float or duration")] = None
    max: Annotated[Bound, Meta(description="Greatest value, of an int, float or duration")] = None
    choices: Annotated[
        tuple[Any, ...] | None, Meta(description="The only values allowed; of a list, the only items")
    ] = None
    apply: Annotated[
        Literal["live", "reload", "restart"],
        Meta(description="How a change reaches the module: told to it, by a new generation, by a restart"),
    ] = "restart"
    secret: Annotated[bool, Meta(description="Masked in every output, log and audit line")] = False
    description: Annotated[str, Meta(description="For people")] = ""


class Check(Struct, frozen=True, forbid_unknown_fields=True):
    """One way to ask whether a replica is well. Exactly one key."""

    http: Annotated[str | None, Meta(description="URL, `http://…`; any 2xx or 3xx answer is good")] = None
    exec: Annotated[
        Command | None,
        Meta(
            description="Program and arguments, looked up and run as the module's own; exit status 0 is good"
        ),
    ] = None
    tcp: Annotated[str | None, Meta(description="`HOST:PORT` that accepts a connection")] = None
    unix: Annotated[
        str | None,
        Meta(description="Path, from the module's folder, of a Unix socket that accepts a connection"),
    ] = None
    control: Annotated[bool, Meta(description="Ask the module's own `health` on its control socket")] = False


class Health(Struct, frozen=True, forbid_unknown_fields=True):
    """How it is known that a replica is well."""

    check: Annotated[
        Check | None, Meta(description="Failing, the replica is reported as unhealthy; nothing is restarted")
    ] = None
    startup: Annotated[
        Check | None,
        Meta(description="Has to pass before the replica is ready; nothing else is asked before"),
    ] = None
    liveness: Annotated[Check | None, Meta(description="Failing, the replica is restarted")] = None
    readiness: Annotated[
        Check | None, Meta(description="Another name for `check`, and asked instead of it")
    ] = None
    interval: Annotated[Seconds, Meta(description="From the beginning of one check to that of the next")] = (
        Seconds(10)
    )
    timeout: Annotated[Seconds, Meta(description="A check that takes longer has failed")] = Seconds(2)
    failures: Annotated[Count, Meta(description="Failed checks in a row that count as failing")] = 3
    successes: Annotated[Count, Meta(description="Good checks in a row that count as passed")] = 1
    watchdog: Annotated[Seconds | None, Meta(description="`WATCHDOG=1` must come at least this often")] = None


class Backoff(Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait before a restart."""

    first: Annotated[Seconds, Meta(description="Before the first restart")] = Seconds(0)
    initial: Annotated[Seconds, Meta(description="Before the second")] = Seconds(0.5)
    factor: Annotated[float, Meta(ge=1, le=1000, description="Each later wait is longer by this")] = 2.0
    max: Annotated[Seconds, Meta(description="The longest wait")] = Seconds(30)
    jitter: Annotated[float, Meta(ge=0, le=1, description="Share of a wait that is left to chance")] = 0.1
    reset_after: Annotated[Seconds, Meta(description="After running this long the waits begin anew")] = (
        Seconds(30)
    )


class Intensity(Struct, frozen=True, forbid_unknown_fields=True):
    """More restarts than this, and the replica has failed until an operator or healing acts."""

    restarts: Annotated[int, Meta(ge=0, le=2**31 - 1, description="Restarts allowed within the time")] = 5
    within: Annotated[Seconds, Meta(description="The time")] = Seconds(60)


class Restart(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens when a replica ends by itself."""

    policy: Annotated[
        Literal["always", "on-failure", "never"], Meta(description="When to start it again")
    ] = "on-failure"
    backoff: Annotated[Backoff, Meta(description="How long to wait before")] = Backoff()
    intensity: Annotated[Intensity, Meta(description="How often at most")] = Intensity()


class Start(Struct, frozen=True, forbid_unknown_fields=True):
    """How long a replica may take to get ready."""

    timeout: Annotated[Seconds, Meta(description="Not ready by then: stopped, and tried again")] = Seconds(30)


class Stop(Struct, frozen=True, forbid_unknown_fields=True):
    """How a replica is stopped."""

    signal: Annotated[str, Meta(description="Signal that asks it to end")] = "SIGTERM"
    timeout: Annotated[Seconds, Meta(description="Then SIGKILL to the whole tree")] = Seconds(10)


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What a replica may use; nothing is limited unless given."""

    memory: Annotated[Size | None, Meta(description="Memory")] = None
    cpu: Annotated[
        Annotated[float, Meta(gt=0, le=100_000)] | None, Meta(description="Processors, 0.5 is half of one")
    ] = None
    tasks: Annotated[Count | None, Meta(description="Processes and threads")] = None
    files: Annotated[Count | None, Meta(description="Open files")] = None


class Reload(Struct, frozen=True, forbid_unknown_fields=True):
    """How a new generation takes over."""

    strategy: Annotated[
        Literal["graceful", "rolling", "immediate", "signal"],
        Meta(
            description="The new beside the old until it is ready; replica by replica; stop, then start; "
            "or a signal to the running process"
        ),
    ] = "graceful"
    signal: Annotated[str, Meta(description="Signal of the strategy `signal`")] = "SIGHUP"


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a replica's output goes."""

    max_size: Annotated[Size, Meta(description="A larger log file is rotated")] = Size(10 * 2**20)
    files: Annotated[Count, Meta(description="Log files kept, the current one included")] = 5
    target: Annotated[
        Literal["file", "journal"], Meta(description="Where to write; `journal` is journald")
    ] = "file"


class Chaos(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether experiments may disturb this module (`nexusctl chaos`)."""

    allow: Annotated[bool, Meta(description="Whether they may kill, terminate and freeze it")] = False


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole module.toml."""

    id: Annotated[ModuleId, Meta(description="`GROUP/NAME`; the folder's place says it, and must agree")] = ""
    version: Annotated[Name, Meta(description="Version of the module")] = "0.0.0"
    description: Annotated[str, Meta(description="For people")] = ""
    critical: Annotated[bool, Meta(description="Counted by readiness and `live.py critical`")] = False
    autostart: Annotated[bool, Meta(description="Started when nexusd first sees it")] = True
    requires: Annotated[
        tuple[ModuleId, ...], Meta(description="Modules started and ready first, stopped after")
    ] = ()
    after: Annotated[tuple[ModuleId, ...], Meta(description="Modules started first if they are to run")] = ()
    replicas: Annotated[int, Meta(ge=0, le=MOST_REPLICAS, description="Processes at start")] = 1
    max_replicas: Annotated[
        int, Meta(ge=1, le=MOST_REPLICAS, description="Most that `replicas` may be set to")
    ] = 16
    permissions: Annotated[
        tuple[Name, ...], Meta(description="What nexusd's security context must hold to load it")
    ] = ()
    on_give_up: Annotated[
        Literal["keep-running", "exit"],
        Meta(description="When it has failed for good: go on, or nexusd leaves with status 10"),
    ] = "keep-running"
    run: Annotated[Run, Meta(description="What to run")] = Run()
    config: Annotated[dict[KeyName, ConfigKey], Meta(description="Values that `configure` may set")] = field(
        default_factory=dict
    )
    health: Annotated[Health, Meta(description="How it is known to be well")] = Health()
    restart: Annotated[Restart, Meta(description="When it ends by itself")] = Restart()
    start: Annotated[Start, Meta(description="How long it may take to get ready")] = Start()
    stop: Annotated[Stop, Meta(description="How it is stopped")] = Stop()
    limits: Annotated[Limits, Meta(description="What a replica may use")] = Limits()
    reload: Annotated[Reload, Meta(description="How a new generation takes over")] = Reload()
    log: Annotated[Log, Meta(description="Where output goes")] = Log()
    chaos: Annotated[Chaos, Meta(description="Whether experiments may disturb it")] = Chaos()
