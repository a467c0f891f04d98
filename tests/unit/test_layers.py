"""Who may import whom: the layers, read from the files themselves and from nothing else."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("nexusd", "nexusctl", "aeon_interface", "nexus_v2_enterprise")

OF_COMMANDS = {"nexusd.domain", "nexusd.ports", "nexusd.supervisor", "nexusd.outcomes", "nexusd.reach"}
# The longest name that fits a file says what it may import of ours, itself and `nexusd`'s version aside.
LAYERS: dict[str, set[str]] = {
    "nexusd.domain": set(),
    "nexusd.connections": set(),
    "nexusd.sdk": {"nexusd.connections"},
    "nexusd.keeper": {"nexusd.sdk"},
    "nexusd.ports": {"nexusd.domain"},
    "nexusd.config": {"nexusd.domain"},
    "nexusd.terms": {"nexusd.domain", "nexusd.config"},
    "nexusd.supervisor": {"nexusd.domain", "nexusd.ports"},
    "nexusd.outcomes": {"nexusd.domain", "nexusd.ports"},
    "nexusd.experiments": {"nexusd.domain", "nexusd.ports"},
    "nexusd.chaos": {"nexusd.domain", "nexusd.ports", "nexusd.supervisor", "nexusd.experiments"},
    "nexusd.reach": {"nexusd.domain", "nexusd.supervisor"},
    "nexusd.healing": {"nexusd.domain", "nexusd.supervisor", "nexusd.reach"},
    "nexusd.scaling": OF_COMMANDS,
    "nexusd.reloading": OF_COMMANDS,
    "nexusd.configuring": OF_COMMANDS,
    "nexusd.operations": OF_COMMANDS
    | {"nexusd.healing", "nexusd.scaling", "nexusd.reloading", "nexusd.configuring"},
    "nexusd.rpc": {
        "nexusd.chaos",
        "nexusd.domain",
        "nexusd.ports",
        "nexusd.supervisor",
        "nexusd.operations",
        "nexusd.outcomes",
        "nexusd.reach",
    },
    "nexusd.system": {"nexusd.domain", "nexusd.ports", "nexusd.config"},  # of config the log's format only
    "nexusd.place": {"nexusd.config", "nexusd.rpc", "nexusd.system"},
    "nexusd.catalogue": {"nexusd.domain", "nexusd.ports", "nexusd.supervisor", "nexusd.system"},
    "nexusd": {"nexusd"},
    "nexusctl": {"nexusd.domain.chain"},  # to prove an audit log without a daemon
    "aeon_interface": {"nexusctl"},
}
ONLY_THE_HOST = "nexusd.keeper.host"
AEON = ("aeon_interface", "aeon_interface.command", "aeon_interface.live", "aeon_interface.status")
CLIENT = ("nexusctl.client", "nexusctl.async_client", "nexusctl.wire", "nexusctl.unreachable")


def files() -> dict[str, Path]:
    found = {}
    for top in OURS:
        for path in sorted(ROOT.glob(f"{top}.py")) + sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


FILES = files()


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules by their full names. `from nexusd.domain import fleet` is nexusd.domain.fleet."""
    return frozenset(_imports(ast.parse(path.read_text(encoding="utf-8"))))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "a relative import"
            inner = [f"{node.module}.{one.name}" for one in node.names]
            yield from (name if name in FILES else node.module for name in inner)


def is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def layer_of(name: str) -> str:
    return max((layer for layer in LAYERS if is_within(name, layer)), key=len)


@pytest.mark.parametrize("name", [name for name in FILES if name != "nexus_v2_enterprise"])
def test_a_file_imports_only_what_its_layer_may(name: str) -> None:
    layer = layer_of(name)
    ours = {one for one in imports(FILES[name]) if one.partition(".")[0] in OURS} - {"nexusd"}
    wrong = [one for one in ours if not any(is_within(one, allowed) for allowed in (layer, *LAYERS[layer]))]
    assert wrong == []


def test_of_the_keeper_only_the_host_knows_the_sdk() -> None:
    knowing = [
        name for name in FILES if is_within(name, "nexusd.keeper") and "nexusd.sdk" in imports(FILES[name])
    ]
    its_parts = {"nexusd.keeper.module_control", "nexusd.keeper.module_code", "nexusd.keeper.rehearsal"}
    assert set(knowing) <= {ONLY_THE_HOST, *its_parts}


def test_nobody_imports_the_program_itself() -> None:
    assert [
        name for name, path in FILES.items() if imports(path) & {"nexusd.__main__", "nexusctl.__main__"}
    ] == []


@pytest.mark.parametrize(
    "name", [name for name in FILES if name in CLIENT or is_within(name, "nexusd.keeper")]
)
def test_the_client_and_the_keeper_live_on_the_standard_library(name: str) -> None:
    strangers = {one.partition(".")[0] for one in imports(FILES[name])} - sys.stdlib_module_names - set(OURS)
    assert strangers == set()


def test_the_client_imports_nothing_of_nexusctl_but_its_own_parts() -> None:
    for name in CLIENT:
        if name in FILES:
            ours = {one for one in imports(FILES[name]) if is_within(one, "nexusctl")}
            assert ours <= set(CLIENT), name


def test_no_file_waits_for_another_that_waits_for_it() -> None:
    """Imports within a function are counted as well: one to break a circle means that the layers are wrong."""
    left = {
        name: {one for one in imports(path) if one in FILES and one != name} for name, path in FILES.items()
    }
    for names in left.values():
        names.discard("nexusd")  # its version, which needs nobody
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert set(left) <= {
        *CLIENT,
        *AEON,
    }  # the synchronous client offers the asynchronous one by name, when asked


def test_a_probe_loads_nothing_with_the_package_of_nexusctl() -> None:
    assert (ROOT / "nexusctl" / "__init__.py").read_text(encoding="utf-8") == ""


def test_the_folder_of_units_does_not_hide_python_systemd() -> None:
    assert not (ROOT / "systemd" / "__init__.py").exists()


def test_a_start_of_nexusd_does_not_wait_for_prometheus_client() -> None:
    program = "import sys, nexusd.__main__, nexusd.api; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
