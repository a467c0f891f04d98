"""ARCHITECTURE.md says what is there, and the code keeps to what it forbids."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
FILES = sorted(
    path for part in ("nexusd", "nexusctl", "aeon_interface") for path in (ROOT / part).rglob("*.py")
)
OURS = ("nexusd", "nexusctl", "aeon_interface")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{one.name}" for one in node.names)


def is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def parts_of_the_table() -> dict[str, set[str]]:
    rows = re.findall(r"^\| (`(?:nexus|aeon).+?) \| (.+?) \|$", PAGE, flags=re.MULTILINE)
    named = [(re.findall(r"`(.+?)`", left), set(re.findall(r"`(.+?)`", right))) for left, right in rows]
    return {part: allowed for parts, allowed in named for part in parts}


def test_the_page_stays_short() -> None:
    assert len(PAGE.splitlines()) < 150


def test_every_file_of_the_product_has_its_line_and_no_line_lost_its_file() -> None:
    told: set[str] = set()
    folder = ""
    for line in PAGE.split("## Files")[1].split("```")[1].splitlines():
        if found := re.match(r"(\S+/)", line):
            folder = found[1]
        elif line.startswith("  "):
            told |= {folder + name for name in re.findall(r"(?:^|(?<=\.py)) +(\S+\.py)", line)}
    there = {str(path.relative_to(ROOT)) for path in FILES if path.name != "__init__.py"}
    assert sorted(told) == sorted(there)


PARTS = parts_of_the_table()


def test_every_file_belongs_to_a_part_of_the_table() -> None:
    names = [name_of(path) for path in FILES if path.name != "__init__.py"]
    assert [name for name in names if not any(is_within(name, part) for part in PARTS)] == []


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_only_what_the_table_allows(part: str) -> None:
    allowed = {part, "nexusd.__version__"} | PARTS[part]
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        if is_within(name_of(path), part)
        for name in imports(path)
        if name.partition(".")[0] in OURS and not any(is_within(name, one) for one in allowed)
    ]
    assert wrong == []


def test_the_domain_reads_no_clock_no_file_no_socket_and_no_chance() -> None:
    forbidden = {"asyncio", "datetime", "io", "os", "pathlib", "random", "secrets", "socket"}
    forbidden |= {"subprocess", "threading", "time"}
    wrong = [
        f"{path.name} imports {name}"
        for path in FILES
        if path.parent.name == "domain"
        for name in imports(path)
        if name.partition(".")[0] in forbidden
    ]
    assert wrong == []


def test_the_keeper_and_the_client_of_nexusctl_need_the_standard_library_alone() -> None:
    client = {"client", "async_client", "wire", "unreachable", "__init__"}
    alone = [
        path
        for path in FILES
        if path.parent.name == "keeper" or (path.parent.name == "nexusctl" and path.stem in client)
    ]
    known = sys.stdlib_module_names | set(OURS)
    wrong = [
        f"{path.name} imports {name}"
        for path in alone
        for name in imports(path)
        if name.partition(".")[0] not in known
    ]
    assert wrong == []


def test_nothing_forks_but_the_keeper() -> None:
    """Calls by name, as far as one can see by reading: fork, spawn and subprocess."""
    starting = re.compile(r"\b(os\.(fork|posix_spawn|system)|subprocess\.|create_subprocess|multiprocessing)")
    found = {
        (path.name, match[0])
        for path in FILES
        if path.relative_to(ROOT).parts[0] == "nexusd"
        for match in starting.finditer(path.read_text(encoding="utf-8"))
    }
    assert {name for name, _ in found} == {"birth.py", "spawning.py", "startup.py"}
    assert ("birth.py", "os.fork") in found
    assert ("spawning.py", "os.posix_spawn") in found
    assert ("startup.py", "os.posix_spawn") in found
