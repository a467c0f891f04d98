"""The table of nexusd's own metrics: name, type, help, labels. docs/metrics.md is made from it.

Where the values come from stands in `exposition`.
"""

from typing import Final, Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]

MODULE: Final = ("module",)
REPLICA: Final = ("module", "replica")
WHOLE: Final = "of all processes of the replica where it has a cgroup"
LEADER: Final = "of the replica's first process; what that has forked is not counted"


class Family(NamedTuple):
    """`name` as it stands in a query, with `_total` and the like."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_DAEMON = (
    Family("nexus_build_info", "gauge", "1, with the versions as labels", ("python", "version")),
    Family("nexus_daemon_uptime_seconds", "gauge", "Seconds since nexusd was started"),
    Family("nexus_ready", "gauge", "1 if check_readiness says ready, else 0"),
    Family("nexus_keeper_connected", "gauge", "1 while nexusd is connected to its keeper, else 0"),
    Family(
        "nexus_keeper_round_trip_seconds",
        "histogram",
        "From asking the keeper whether it lives to its answer",
    ),
    Family(
        "nexus_event_loop_lag_seconds",
        "histogram",
        "How much later than asked for nexusd's event loop was woken, looked at once a second",
    ),
    Family("nexus_rpc_connections", "gauge", "Open connections to the API socket"),
    Family(
        "nexus_rpc_requests_total",
        "counter",
        "Requests answered, by outcome: ok, or the kind of the error",
        ("method", "outcome"),
    ),
    Family(
        "nexus_rpc_request_duration_seconds",
        "histogram",
        "Seconds from a request to its answer, waiting for the outcome included",
        ("method",),
    ),
    Family(
        "nexus_watchdog_pings_total",
        "counter",
        "WATCHDOG=1 of modules that have a watchdog, as the keeper told them",
    ),
    Family("nexus_audit_lines_total", "counter", "Lines written to the audit log since nexusd was started"),
    Family(
        "nexus_module_scrape_errors_total",
        "counter",
        "Answers with a module's own metrics that could not be taken, in whole or in part, by reason",
        ("module", "reason"),
    ),
)
_MODULES = (
    Family(
        "nexus_module_state",
        "gauge",
        "1 for the state the module is in, 0 for all others",
        ("module", "state"),
    ),
    Family(
        "nexus_module_health", "gauge", "1 for the module's health, 0 for the others", ("health", "module")
    ),
    Family("nexus_module_wanted", "gauge", "1 if the module is to run, 0 if it is to be stopped", MODULE),
    Family("nexus_module_critical", "gauge", "1 if the manifest calls the module critical, else 0", MODULE),
    Family("nexus_module_generation", "gauge", "Generation in force; a reload counts it up", MODULE),
    Family("nexus_module_replicas_wanted", "gauge", "Replicas the module is to have", MODULE),
    Family("nexus_module_replicas_ready", "gauge", "Replicas that are started and ready", MODULE),
    Family(
        "nexus_module_start_duration_seconds",
        "histogram",
        "Seconds from the decision to start a replica until it was ready",
        MODULE,
    ),
    Family(
        "nexus_module_reload_duration_seconds",
        "histogram",
        "Seconds that a reload took somebody who waited for its outcome",
        ("module", "outcome"),
    ),
)
_REPLICAS = (
    Family(
        "nexus_replica_state",
        "gauge",
        "1 for the state the replica is in, 0 for all others",
        (*REPLICA, "state"),
    ),
    Family(
        "nexus_replica_restarts_total",
        "counter",
        "Restarts since nexusd was started, by reason; 0 for those that are possible",
        ("module", "reason", "replica"),
    ),
    Family("nexus_replica_uptime_seconds", "gauge", "Seconds since the replica got ready", REPLICA),
    Family("nexus_replica_cpu_seconds_total", "counter", f"Processor time {WHOLE}; else {LEADER}", REPLICA),
    Family(
        "nexus_replica_resident_memory_bytes",
        "gauge",
        f"Memory {WHOLE} with the memory controller, page cache included; else resident memory {LEADER}",
        REPLICA,
    ),
    Family("nexus_replica_open_fds", "gauge", f"Open file descriptors {LEADER}", REPLICA),
    Family("nexus_replica_threads", "gauge", f"Threads {LEADER}", REPLICA),
    Family(
        "nexus_replica_log_bytes_total",
        "counter",
        "Bytes of output written to the replica's log since the keeper was started",
        REPLICA,
    ),
)
SECTIONS: Final = {"The daemon": _DAEMON, "Modules": _MODULES, "Replicas": _REPLICAS}
FAMILIES: Final = {family.name: family for families in SECTIONS.values() for family in families}


def tables() -> str:
    """docs/metrics.md's generated part."""
    return "\n".join(f"## {title}\n\n{_table(families)}" for title, families in SECTIONS.items())


def _table(families: tuple[Family, ...]) -> str:
    rows = [f"| `{one.name}` | {one.kind} | {_labels(one)} | {one.help} |\n" for one in families]
    return "| metric | type | labels | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _labels(family: Family) -> str:
    return ", ".join(f"`{label}`" for label in family.labels)
