"""What must hold between the keys of a manifest, and of keys whose type alone does not say what they may be.

Judges one manifest by itself; whether a required module exists is a question to the graph.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from nexusd.domain import addresses, settings
from nexusd.domain.errors import BadValue
from nexusd.domain.fields import near_match, shown
from nexusd.domain.manifest_sections import Check, ConfigKey, Health, Manifest, Run

SIGNALS: Final = tuple(known.name for known in signal.Signals)
_SIGNAL_EXPECTED: Final = "the name of a signal, such as SIGTERM"
_INSTEAD_OF_TLS: Final = 'a program can ask over TLS: exec = ["curl", "-fsS", "https://…"]'
_READY_BY: Final = ("health.check", "health.readiness", "health.startup")
# What the daemon tells a replica by its environment; overriding it would cut the replica off.
_RESERVED: Final = ("NEXUS_", "LISTEN_", "WATCHDOG_", "NOTIFY_SOCKET")


class Problem(NamedTuple):
    """A rule that is broken. `because` are the keys it was judged by, when they are not just `key`."""

    key: str
    expected: str
    found: str
    hint: str | None = None
    because: tuple[str, ...] = ()


def problems(manifest: Manifest) -> Iterator[Problem]:
    """Every rule that the manifest breaks."""
    yield from _replicas(manifest)
    yield from _dependencies(manifest)
    yield from _run(manifest.run)
    yield from _listen(manifest.run)
    yield from _health(manifest)
    if not manifest.start.timeout:
        yield Problem("start.timeout", "a duration above 0", "0")
    yield from _restart(manifest)
    yield from _signal("stop.signal", manifest.stop.signal)
    yield from _signal("reload.signal", manifest.reload.signal)
    for name, key in manifest.config.items():
        yield from _config_key(f"config.{name}", key)


def _replicas(manifest: Manifest) -> Iterator[Problem]:
    if manifest.replicas > manifest.max_replicas:
        yield Problem(
            "replicas",
            f"at most max_replicas, which is {manifest.max_replicas}",
            shown(manifest.replicas),
            because=("replicas", "max_replicas"),
        )


def _dependencies(manifest: Manifest) -> Iterator[Problem]:
    for name, ids in (("requires", manifest.requires), ("after", manifest.after)):
        if manifest.id in ids:
            yield Problem(name, "other modules", f"the module itself, {shown(manifest.id)}")


def _run(run: Run) -> Iterator[Problem]:
    if (run.python is None) == (run.exec is None):
        found = "neither" if run.python is None else "both"
        yield Problem("run", "exactly one of python and exec", found, because=("run.python", "run.exec"))
    if run.exec is not None and not run.exec[0]:
        yield Problem("run.exec[0]", "a program", '""')
    if run.interpreter is not None and run.python is None:
        hint = "name the program in exec"
        yield Problem("run.interpreter", "no interpreter without python", shown(run.interpreter), hint)
    for name in run.environment:
        if name.startswith(_RESERVED):
            yield Problem(f"run.environment.{name}", "a name that nexusd does not set itself", shown(name))


def _listen(run: Run) -> Iterator[Problem]:
    for index, entry in enumerate(run.listen):
        if not _parses(addresses.parse_listen, entry):
            yield Problem("run.listen", addresses.LISTEN_EXPECTED, shown(entry))
        elif entry in run.listen[:index]:
            yield Problem("run.listen", "each socket once", f"{shown(entry)} again")


def _health(manifest: Manifest) -> Iterator[Problem]:
    health = manifest.health
    checks = _checks(health)
    for name, check in checks.items():
        yield from _check(f"health.{name}", check)
    if manifest.run.ready == "health" and not checks.keys() - {"liveness"}:
        expected = "a check in [health] (check, readiness or startup) to be ready by"
        yield Problem("run.ready", expected, "none", because=("run.ready", *_READY_BY))
    for name, value in (
        ("interval", health.interval),
        ("timeout", health.timeout),
        ("watchdog", health.watchdog),
    ):
        if value is not None and not value:
            yield Problem(f"health.{name}", "a duration above 0", "0")


def _checks(health: Health) -> Mapping[str, Check]:
    named = {
        "check": health.check,
        "startup": health.startup,
        "liveness": health.liveness,
        "readiness": health.readiness,
    }
    return {name: check for name, check in named.items() if check is not None}


def _check(key: str, check: Check) -> Iterator[Problem]:
    given = [name for name in check.__struct_fields__ if getattr(check, name) not in (None, False)]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        because = tuple(f"{key}.{name}" for name in check.__struct_fields__)
        yield Problem(key, "exactly one of http, exec, tcp, unix and control", found, because=because)
    if check.exec is not None and not check.exec[0]:
        yield Problem(f"{key}.exec[0]", "a program", '""')
    readers: tuple[tuple[str, str | None, Callable[[str], Any], str], ...] = (
        ("http", check.http, addresses.parse_http_url, addresses.URL_EXPECTED),
        ("tcp", check.tcp, addresses.parse_host_port, addresses.HOST_PORT_EXPECTED),
        ("unix", check.unix, addresses.parse_socket_path, addresses.SOCKET_PATH_EXPECTED),
    )
    for name, value, parse, expected in readers:
        if value is not None and not _parses(parse, value):
            is_tls = name == "http" and value.startswith("https://")
            yield Problem(f"{key}.{name}", expected, shown(value), _INSTEAD_OF_TLS if is_tls else None)


def _restart(manifest: Manifest) -> Iterator[Problem]:
    backoff, intensity = manifest.restart.backoff, manifest.restart.intensity
    for name, value in (("first", backoff.first), ("initial", backoff.initial)):
        if value > backoff.max:
            key = f"restart.backoff.{name}"
            expected = f"at most restart.backoff.max, which is {backoff.max.text()}"
            yield Problem(key, expected, value.text(), because=(key, "restart.backoff.max"))
    if not intensity.within:
        yield Problem("restart.intensity.within", "a duration above 0", "0")


def _signal(key: str, name: str) -> Iterator[Problem]:
    if name in SIGNALS:
        return
    near = f"SIG{name.upper()}" if f"SIG{name.upper()}" in SIGNALS else near_match(name, SIGNALS)
    hint = f"did you mean {shown(near)}?" if near else None
    yield Problem(key, _SIGNAL_EXPECTED, shown(name), hint)


def _config_key(place: str, key: ConfigKey) -> Iterator[Problem]:
    broken = [*_bounds(place, key), *_choices(place, key)]
    yield from broken
    yield from _default(place, replace(key, min=None, max=None, choices=None) if broken else key)


def _bounds(place: str, key: ConfigKey) -> Iterator[Problem]:
    readable = True
    for name, bound in (("min", key.min), ("max", key.max)):
        if bound is not None and key.type not in settings.RANGED:
            readable = False
            expected = f"no {name} for a {key.type}: it is for int, float and duration"
            yield Problem(f"{place}.{name}", expected, shown(bound))
        elif bound is not None and not _parses(lambda value: settings.convert_value(key, value), bound):
            readable = False
            yield Problem(f"{place}.{name}", f"a value of type {key.type}", shown(bound))
    if readable and key.min is not None and key.max is not None:
        least, greatest = (settings.convert_value(key, bound) for bound in (key.min, key.max))
        if least > greatest:
            expected = f"at most max, which is {shown(key.max)}"
            yield Problem(f"{place}.min", expected, shown(key.min), because=(f"{place}.min", f"{place}.max"))


def _choices(place: str, key: ConfigKey) -> Iterator[Problem]:
    for index, choice in enumerate(key.choices or ()):
        value = [choice] if key.type == "list" else choice
        if not _parses(lambda item: settings.convert_value(key, item), value):
            found = "a secret value" if key.secret else shown(choice)
            expected = "an item of a list" if key.type == "list" else f"a value of type {key.type}"
            yield Problem(f"{place}.choices[{index}]", expected, found)
    if key.choices == ():
        yield Problem(f"{place}.choices", "at least one choice", "[]")


def _default(place: str, key: ConfigKey) -> Iterator[Problem]:
    try:
        settings.check_value(key, key.default)
    except BadValue as error:
        because = tuple(f"{place}.{name}" for name in ("default", "type", "min", "max", "choices"))
        yield Problem(f"{place}.default", error.details["expected"], error.details["found"], because=because)


def _parses(parse: Callable[[Any], object], value: object) -> bool:
    try:
        parse(value)
    except ValueError:
        return False
    return True
