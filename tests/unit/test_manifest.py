"""What a manifest may say, and how its faults are told. Reading files is tried in tests/integration."""

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusd.domain.addresses import Listen, parse_listen
from nexusd.domain.fields import MOST_FAULTS
from nexusd.domain.manifest import (
    Fault,
    InvalidManifest,
    Manifest,
    Seconds,
    Size,
    manifest_schema,
    parse_manifest,
    valid_id,
)
from nexusd.domain.units import parse_unit, unit_number

DOCS = Path(__file__).parents[2] / "docs"
RUN: dict[str, Any] = {"python": "client:Client"}


def parse(text: str, module_id: str = "vitals/client") -> Manifest:
    return parse_manifest(tomllib.loads(text), module_id=module_id, file="module.toml")


def faults_of(text: str, module_id: str = "vitals/client") -> tuple[Fault, ...]:
    with pytest.raises(InvalidManifest) as caught:
        parse(text, module_id)
    return caught.value.faults


def faults_by_key(text: str) -> dict[str, Fault]:
    return {fault.key: fault for fault in faults_of(text)}


def the_fault(text: str) -> Fault:
    (fault,) = faults_of(text)
    return fault


def with_run(text: str) -> str:
    return f'run = {{ python = "client:Client" }}\n{text}'


def examples_of_the_docs() -> list[str]:
    page = (DOCS / "manifest.md").read_text(encoding="utf-8")
    return [part.split("```")[0] for part in page.split("```toml\n")[1:]]


# What is filled in


def test_the_shortest_manifest_has_every_default_of_the_design():
    manifest = parse('run.python = "client:Client"')
    assert manifest.id == "vitals/client"
    assert (manifest.critical, manifest.autostart) == (False, True)
    assert (manifest.replicas, manifest.max_replicas) == (1, 16)
    assert manifest.restart.policy == "on-failure"
    assert manifest.restart.backoff.initial == 0.5
    assert (manifest.restart.intensity.restarts, manifest.restart.intensity.within) == (5, 60)
    assert (manifest.stop.signal, manifest.stop.timeout) == ("SIGTERM", 10)
    assert manifest.limits.memory is None
    assert (manifest.reload.strategy, manifest.reload.signal) == ("graceful", "SIGHUP")
    assert (manifest.log.max_size, manifest.log.files) == (10 * 1024 * 1024, 5)
    assert manifest.chaos.allow is False


def test_a_python_module_is_ready_when_it_says_so_and_a_program_when_it_has_started():
    assert parse('run.python = "client:Client"').run.ready == "notify"
    assert parse('run.exec = ["./client"]').run.ready == "started"
    assert parse('run = { exec = ["./client"], ready = "notify" }').run.ready == "notify"


def test_durations_and_sizes_are_numbers_inside():
    manifest = parse(with_run('stop.timeout = "1m30s"\nhealth.interval = 2.5\nlimits.memory = "256M"'))
    assert manifest.stop.timeout == 90
    assert manifest.health.interval == 2.5
    assert manifest.limits.memory == 256 * 1024 * 1024


def test_the_default_and_bounds_of_a_duration_key_are_seconds():
    key = parse(
        with_run('config.wait = { type = "duration", default = "1m", min = "500ms", max = 90 }')
    ).config["wait"]
    assert (key.default, key.min, key.max) == (60.0, 0.5, 90.0)


def test_an_id_that_agrees_with_the_folder_is_taken():
    assert parse(with_run('id = "vitals/client"')).id == "vitals/client"


@pytest.mark.parametrize("text", examples_of_the_docs())
def test_the_examples_of_the_docs_are_valid(text: str):
    parse(text, "vitals/heartbeat-client")


# Faults are told together, and tell what was meant


def test_all_faults_of_a_file_are_told_together():
    faults = faults_by_key(
        """
        critical = "yes"
        replcas = 2
        requires = ["mesh/router", "not an id", "vitals/client"]
        [run]
        python = "client:Client"
        exec = ["./client"]
        [restart]
        backoff = { factor = 0.5, initial = "1m" }
        [stop]
        timeout = "soon"
        signal = "SIGTRM"
        """
    )
    assert set(faults) == {
        "critical",
        "replcas",
        "requires[1]",
        "requires",
        "run",
        "restart.backoff.factor",
        "restart.backoff.initial",
        "stop.timeout",
        "stop.signal",
    }


def test_a_fault_tells_file_key_expected_and_found():
    fault = the_fault(with_run("restart.backoff.jitter = 2"))
    assert fault == Fault("module.toml", "restart.backoff.jitter", "a number from 0 to 1", "2")
    assert str(fault) == "module.toml: restart.backoff.jitter: expected a number from 0 to 1, found 2"


def test_a_mistyped_key_names_its_near_match():
    fault = the_fault(with_run("restart.backoff.factr = 2"))
    assert fault.key == "restart.backoff.factr"
    assert fault.hint == 'did you mean "factor"?'


def test_a_mistyped_choice_names_its_near_match():
    fault = the_fault(with_run('restart.policy = "on_failure"'))
    assert fault.expected == 'one of "always", "on-failure", "never"'
    assert fault.hint == 'did you mean "on-failure"?'


def test_a_signal_without_its_prefix_names_its_near_match():
    assert the_fault(with_run('stop.signal = "TERM"')).hint == 'did you mean "SIGTERM"?'


def test_a_key_like_none_has_no_hint():
    assert the_fault(with_run("zzz = 1")).hint is None


def test_a_required_key_that_was_mistyped_is_told_once():
    assert set(faults_by_key(with_run('config.k = { tpye = "int", default = 1 }'))) == {"config.k.tpye"}


def test_a_mistyped_python_does_not_ask_for_python_too():
    assert set(faults_by_key('run.pyton = "client:Client"')) == {"run.pyton"}


def test_a_mistyped_key_beside_the_right_one_hides_no_rule():
    assert set(faults_by_key(with_run("replcas = 2\nreplicas = 17"))) == {"replcas", "replicas"}


def test_one_broken_rule_does_not_hide_another_on_the_same_keys():
    assert set(faults_by_key(with_run('config.k = { type = "int", default = "x", min = 2, max = 1 }'))) == {
        "config.k.min",
        "config.k.default",
    }


def test_what_rests_on_a_faulty_key_is_not_judged():
    assert set(faults_by_key(with_run('max_replicas = "many"\nreplicas = 17'))) == {"max_replicas"}


def test_other_faults_are_told_even_where_the_id_is_wrong():
    faults = faults_by_key(with_run('id = "vitals/other"\nreplicas = 17'))
    assert faults["id"].expected == '"vitals/client", as the folder says'
    assert "replicas" in faults


def test_a_file_of_nothing_but_faults_is_bounded():
    faults = faults_of(with_run("\n".join(f"k{number} = 1" for number in range(5000))))
    assert len(faults) == MOST_FAULTS + 1
    assert faults[-1].found == f"more than {MOST_FAULTS} faults"


def test_a_secret_default_is_not_told():
    faults = faults_of(with_run('config.token = { type = "int", default = "hunter2", secret = true }'))
    assert "hunter2" not in str(faults)


def test_the_value_of_an_environment_variable_is_not_told():
    fault = the_fault('run = { python = "a:B", environment = { PIN = 4711 } }')
    assert fault.found == "an integer"


def test_what_was_found_is_printable_and_short():
    fault = the_fault(with_run(f'restart.policy = "{"x" * 500}\\u0007"'))
    assert len(fault.found) <= 80
    assert fault.found.isprintable()


# Rules, one row each: what is added to a good manifest, and the key whose fault is told


BROKEN = [
    ("replicas = 17", "replicas"),
    ("replicas = -1", "replicas"),
    ("max_replicas = 0", "max_replicas"),
    ("critical = 1", "critical"),
    ("version = 2.0", "version"),
    ('requires = "mesh/router"', "requires"),
    ('requires = ["vitals/client"]', "requires"),
    ('after = ["vitals/client"]', "after"),
    ('after = ["a/../b"]', "after[0]"),
    ('permissions = ["a b"]', "permissions[0]"),
    ('on_give_up = "panic"', "on_give_up"),
    ("health = 3", "health"),
    ("health.check = {}", "health.check"),
    ("health.check.control = false", "health.check"),
    ('health.check = { tcp = "a:1", control = true }', "health.check"),
    ('health.check.http = "ftp://a/"', "health.check.http"),
    ('health.check.http = "http://a:b/"', "health.check.http"),
    ('health.check.http = "http://[/"', "health.check.http"),
    ('health.check.tcp = "8080"', "health.check.tcp"),
    ('health.check.tcp = "a:0"', "health.check.tcp"),
    ('health.check.tcp = "a:70000"', "health.check.tcp"),
    ('health.check.unix = ""', "health.check.unix"),
    ("health.check.exec = []", "health.check.exec"),
    ('health.check.exec = [""]', "health.check.exec[0]"),
    ('health.liveness = { udp = "a:1", control = true }', "health.liveness.udp"),
    ("health.interval = 0", "health.interval"),
    ('health.timeout = "0s"', "health.timeout"),
    ('health.timeout = "-1s"', "health.timeout"),
    ("health.watchdog = 0", "health.watchdog"),
    ("health.failures = 0", "health.failures"),
    ("restart.backoff.factor = 0.9", "restart.backoff.factor"),
    ("restart.backoff.factor = inf", "restart.backoff.factor"),
    ("restart.backoff.jitter = nan", "restart.backoff.jitter"),
    ('restart.backoff.initial = "31s"', "restart.backoff.initial"),
    ('restart.backoff.first = "31s"', "restart.backoff.first"),
    ("restart.backoff.max = inf", "restart.backoff.max"),
    ("restart.intensity.within = 0", "restart.intensity.within"),
    ("restart.intensity.restarts = -1", "restart.intensity.restarts"),
    ("start.timeout = 0", "start.timeout"),
    ('stop.signal = "SIGNONE"', "stop.signal"),
    ("stop.timeout = true", "stop.timeout"),
    ('reload.signal = "hup"', "reload.signal"),
    ('reload.strategy = "slow"', "reload.strategy"),
    ("limits.cpu = 0", "limits.cpu"),
    ("limits.memory = 0", "limits.memory"),
    ('limits.memory = "10MB"', "limits.memory"),
    ("limits.files = 0", "limits.files"),
    ("limits.tasks = 99999999999999999999", "limits.tasks"),
    ("log.files = 0", "log.files"),
    ("log.max_size = -5", "log.max_size"),
    ("chaos.allow = 1", "chaos.allow"),
    ("config.k = 5", "config.k"),
    ("config.'a b' = { type = 'int', default = 1 }", "config.a b"),
    ("config.k = { type = 'int' }", "config.k.default"),
    ("config.k = { default = 1 }", "config.k.type"),
    ("config.k = { type = 'int', default = 1.5 }", "config.k.default"),
    ("config.k = { type = 'int', default = 5, max = 4 }", "config.k.default"),
    ("config.k = { type = 'int', default = 5, min = 9, max = 4 }", "config.k.min"),
    ("config.k = { type = 'int', default = 5, min = 'x' }", "config.k.min"),
    ("config.k = { type = 'str', default = '', min = 1 }", "config.k.min"),
    ("config.k = { type = 'str', default = 'c', choices = ['a', 'b'] }", "config.k.default"),
    ("config.k = { type = 'int', default = 1, choices = [1, 'b'] }", "config.k.choices[1]"),
    ("config.k = { type = 'int', default = 1, choices = [] }", "config.k.choices"),
    ("config.k = { type = 'duration', default = 'soon' }", "config.k.default"),
    ("config.k = { type = 'list', default = [[1]] }", "config.k.default"),
    ("config.k = { type = 'str', default = 2020-01-01 }", "config.k.default"),
]


@pytest.mark.parametrize(("text", "key"), BROKEN, ids=[text for text, _ in BROKEN])
def test_a_broken_rule_is_told_once_at_its_key(text: str, key: str):
    assert [fault.key for fault in faults_of(with_run(text))] == [key]


BROKEN_RUN = [
    ("", "run"),
    ("run = 5", "run"),
    ("run = {}", "run"),
    ('run = { python = "a:B", exec = ["c"] }', "run"),
    ('run.python = "a"', "run.python"),
    ('run.python = "../a:B"', "run.python"),
    ('run.python = "a.py:B"', "run.python"),
    ("run.exec = []", "run.exec"),
    ('run.exec = "ls"', "run.exec"),
    ('run.exec = [""]', "run.exec[0]"),
    ('run.exec = ["a", "\\u0000"]', "run.exec[1]"),
    ('run = { exec = ["a"], interpreter = "/usr/bin/python3" }', "run.interpreter"),
    ('run = { exec = ["a"], listen = ["udp:h:1"] }', "run.listen"),
    ('run = { exec = ["a"], listen = ["tcp:h:1", "tcp:h:1"] }', "run.listen"),
    ('run = { exec = ["a"], ready = "soon" }', "run.ready"),
    ('run = { exec = ["a"], ready = "health" }', "run.ready"),
    ('run = { exec = ["a"], environment = { NOTIFY_SOCKET = "x" } }', "run.environment.NOTIFY_SOCKET"),
    ('run = { exec = ["a"], environment = { "A=B" = "x" } }', "run.environment.A=B"),
]


@pytest.mark.parametrize(("text", "key"), BROKEN_RUN, ids=[text for text, _ in BROKEN_RUN])
def test_a_fault_in_run_is_told_once_at_its_key(text: str, key: str):
    assert [fault.key for fault in faults_of(text)] == [key]


def test_a_liveness_check_alone_can_not_make_a_replica_ready():
    text = 'run = { exec = ["a"], ready = "health" }\nhealth.%s.control = true'
    assert [fault.key for fault in faults_of(text % "liveness")] == ["run.ready"]
    assert parse(text % "readiness").run.ready == "health"


@pytest.mark.parametrize(
    "module_id", ["a/b", "Vitals/heartbeat-client", "0/x_y.z-1", f"{'a' * 64}/{'b' * 64}"]
)
def test_an_id_is_group_and_name(module_id: str):
    assert valid_id(module_id)
    assert parse('run.exec = ["a"]', module_id).id == module_id


@pytest.mark.parametrize(
    "module_id",
    [
        *("", "a", "a/", "/b", "a/b/c", "a b/c", "a/b\n", "a/b\0", "../b", "a/..", "a/b..c", ".a/b"),
        *("a/-b", "é/b", f"{'a' * 65}/b", "a\n/b"),
    ],
)
def test_anything_else_is_no_id(module_id: str):
    assert not valid_id(module_id)
    assert "GROUP/NAME" in faults_of('run.exec = ["a"]', module_id)[0].expected


# Units and addresses


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("1d2h3m4s5ms", 93784.005),
        (0, 0),
        (2.5, 2.5),
    ],
)
def test_a_duration_is_read(value: object, seconds: float):
    assert Seconds.parse(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        *("", "10", "s", "1 s", "30s1m", "1s1s", "-1s", "10s\n", "٣s", "9" * 400 + "s", "99999d"),
        *(-1, True, None, float("nan"), float("inf"), 10**400, [1]),
    ],
)
def test_anything_else_is_no_duration(value: object):
    with pytest.raises(ValueError, match="a duration"):
        Seconds.parse(value)


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=10**8))
def test_a_duration_written_out_is_read_again(seconds: float):
    assert Seconds.parse(Seconds(seconds).text()) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "size"), [("64k", 65536), ("64K", 65536), ("1.5M", 1572864), ("2T", 2**41), (1, 1)]
)
def test_a_size_is_read(value: object, size: int):
    assert Size.parse(value) == size


@pytest.mark.parametrize("value", ["", "10", "1MB", "0k", "-1k", "1k\n", 0, -1, 1.5, True, None, 2**63])
def test_anything_else_is_no_size(value: object):
    with pytest.raises(ValueError, match="a size"):
        Size.parse(value)


@pytest.mark.parametrize(
    ("entry", "listen"),
    [
        ("tcp:127.0.0.1:8080", Listen(None, host="127.0.0.1", port=8080)),
        ("tcp:[::1]:0", Listen(None, host="::1", port=0)),
        ("web=tcp:localhost:80", Listen("web", host="localhost", port=80)),
        ("unix:/run/a=b.sock", Listen(None, path="/run/a=b.sock")),
        ("api=unix:/run/x", Listen("api", path="/run/x")),
    ],
)
def test_a_listen_entry_is_read(entry: str, listen: Listen):
    assert parse_listen(entry) == listen


@pytest.mark.parametrize(
    "entry",
    [
        *("", "tcp", "tcp:", "tcp:8080", "tcp:h:", "tcp:h:-1", "tcp:h:٣", "tcp:::1:80", "tcp:[h]:80"),
        *(
            "tcp:h/x:80",
            "unix:",
            "unix:relative",
            f"unix:/{'x' * 107}",
            "=tcp:h:1",
            "a:b=tcp:h:1",
            "unix:/a\0b",
        ),
    ],
)
def test_anything_else_is_no_listen_entry(entry: str):
    with pytest.raises(ValueError, match=r"HOST:PORT|path of a socket"):
        parse_listen(entry)


# Arbitrary data


WORDS = ["int", "duration", "1s", "a:B", "a/b", "always", "http://a/", "SIGTERM", "tcp:h:1", "\ud800"]
SCALARS = st.one_of(
    *(st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.datetimes(), st.none()),
    st.sampled_from(WORDS),
)
SECTIONS = [manifest_schema(), *manifest_schema()["$defs"].values()]
KNOWN_KEYS = st.sampled_from(sorted({name for section in SECTIONS for name in section["properties"]}))
TABLES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KNOWN_KEYS | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=25,
)


@settings(deadline=None)
@given(st.dictionaries(KNOWN_KEYS | st.text(max_size=4), TABLES, max_size=6))
def test_arbitrary_tables_are_a_manifest_or_faults(raw: dict[str, Any]):
    try:
        manifest = parse_manifest(raw, module_id="a/b", file="f")
    except InvalidManifest as invalid:
        assert invalid.faults
        assert (
            msgspec.json.decode(msgspec.json.encode(invalid.faults), type=tuple[Fault, ...]) == invalid.faults
        )
    else:
        assert manifest.id == "a/b"


@settings(deadline=None)
@given(
    st.fixed_dictionaries({}, optional={name: TABLES for name in Manifest.__struct_fields__ if name != "run"})
)
def test_one_section_of_arbitrary_data_is_a_manifest_or_faults(raw: dict[str, Any]):
    try:
        parse_manifest({**raw, "run": RUN}, module_id="a/b", file="f")
    except InvalidManifest as invalid:
        assert all(fault.key.startswith(tuple(raw)) for fault in invalid.faults)


def test_what_is_not_even_a_table_is_a_fault():
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest([1], module_id="a/b", file="f")  # type: ignore[arg-type]
    assert caught.value.faults[0].expected == "a table"


@pytest.mark.parametrize("key", ["id", "on_give_up", "\ud800"])
def test_a_lone_surrogate_is_a_fault(key: str):
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest({"run": RUN, key: "\ud800"}, module_id="a/b", file="f")
    assert str(caught.value).encode("utf-8")


def test_values_nested_deeply_are_a_fault():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidManifest):
        parse_manifest(
            {"run": RUN, "config": {"k": {"type": "list", "default": deep}}}, module_id="a/b", file="f"
        )


def test_a_manifest_written_out_is_the_same_again():
    manifest = parse(examples_of_the_docs()[1])
    raw = msgspec.to_builtins(manifest, enc_hook=unit_number)
    assert msgspec.convert(raw, Manifest, dec_hook=parse_unit) == manifest


# The generated docs


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schema_in_the_docs_is_current():
    assert (DOCS / "module.schema.json").read_text(encoding="utf-8") == generator().schema_text()


def test_the_tables_in_the_docs_are_current():
    page = (DOCS / "manifest.md").read_text(encoding="utf-8")
    assert page == generator().page_text(page)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(manifest_schema())


@pytest.mark.parametrize("text", examples_of_the_docs())
def test_the_schema_accepts_the_examples(text: str):
    jsonschema.validate(tomllib.loads(text), manifest_schema())


@pytest.mark.parametrize(
    "text",
    [
        "replicas = -1",
        "factr = 2",
        'restart.policy = "sometimes"',
        'stop.timeout = "soon"',
        'stop.timeout = ""',
        'limits.memory = "10MB"',
        'after = ["a/../b"]',
        'requires = ["a/b\\n"]',
        "health.check = {}",
        'run.python = "a"',
        "config.k = { default = 1 }",
    ],
)
def test_the_schema_refuses_what_the_types_refuse(text: str):
    raw = {"run": RUN, **tomllib.loads(text)}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, manifest_schema())


@settings(deadline=None)
@given(st.dictionaries(KNOWN_KEYS, TABLES, max_size=5))
def test_what_is_a_manifest_is_one_to_the_schema_too(raw: dict[str, Any]):
    try:
        parse_manifest({"run": RUN, **raw}, module_id="a/b", file="f")
    except InvalidManifest:
        return
    jsonschema.validate(json.loads(json.dumps({"run": RUN, **raw}, default=str)), manifest_schema())
