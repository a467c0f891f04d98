"""The store on a real disk: round trips, order, damage, no room, no rights."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nexusd.domain.errors import NotPossible
from nexusd.ports import StoredExperiment
from nexusd.system.database import Unusable
from nexusd.system.store import KEPT_EVENTS, KEPT_EXPERIMENTS, SqliteStore, StoredModule


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nexus.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = opened(path)
    yield store
    store.close()


def opened(path: Path) -> SqliteStore:
    store = SqliteStore(str(path))
    store.open()
    return store


def fill(path: Path) -> None:
    """A store with something of everything in it."""
    store = opened(path)
    asyncio.run(store.save_wanted({"test/one": True, "test/two": False}))
    asyncio.run(store.save_value("test/one", "key", "a value"))
    asyncio.run(store.append_events(events(1, 500)))
    store.close()


def events(first: int, last: int) -> list[tuple[int, str]]:
    return [(seq, json.dumps({"seq": seq, "kind": "test"})) for seq in range(first, last + 1)]


VALUES: list[Any] = [
    0,
    -1,
    2**60,
    1.5,
    True,
    False,
    None,
    "",
    "té\u0000xt\n'; DROP TABLE wanted",
    [1, ["a"]],
    {"k": 1},
]


def test_all_that_is_stored_is_there_after_a_restart(store: SqliteStore, path: Path) -> None:
    async def save() -> None:
        await store.save_wanted({"test/one": True, "test/two": False})
        await store.save_count("test/one", 3)
        for number, value in enumerate(VALUES):
            await store.save_value("test/three", f"k{number}", value)
        await store.append_events(events(1, 3))

    asyncio.run(save())
    store.close()
    with closing(opened(path)) as later:
        modules = later.modules()
        assert modules["test/one"] == StoredModule(started=True, count=3)
        assert modules["test/two"] == StoredModule(started=False)
        assert modules["test/three"].configured == {
            f"k{number}": value for number, value in enumerate(VALUES)
        }
        assert [event["seq"] for event in later.events(2)] == [2, 3]


def test_writes_that_are_asked_for_at_once_are_done_in_order(store: SqliteStore) -> None:
    async def save() -> None:
        values = [store.save_value("test/one", "key", number) for number in range(50)]
        wishes = [store.save_wanted({"test/one": number % 2 == 0}) for number in range(50)]
        await asyncio.gather(*values, *wishes)

    asyncio.run(save())
    assert store.modules() == {"test/one": StoredModule(started=False, configured={"key": 49})}


def test_only_the_last_ten_thousand_events_are_kept(store: SqliteStore) -> None:
    async def save() -> None:
        for first in range(1, 12_001, 1000):
            await store.append_events(events(first, first + 999))
        await store.append_events([])

    asyncio.run(save())
    kept = [event["seq"] for event in store.events(20_000)]
    assert kept == list(range(12_001 - KEPT_EVENTS, 12_001))


def test_all_of_it_is_for_its_owner_alone(store: SqliteStore, path: Path) -> None:
    asyncio.run(store.save_value("test/one", "password", "secret"))
    rights = {one.name: oct(one.stat().st_mode & 0o777) for one in path.parent.glob("nexus.db*")}
    assert rights == dict.fromkeys(("nexus.db", "nexus.db-wal", "nexus.db-shm"), "0o600")


# Damage


def garbage_header(path: Path) -> None:
    path.write_bytes(b"this is no database" + path.read_bytes()[19:])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def flipped_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(4096, len(data), 4096):
        data[at : at + 12] = bytes(byte ^ 0xFF for byte in data[at : at + 12])
    path.write_bytes(data)


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


@pytest.mark.parametrize("damage", [garbage_header, truncated, flipped_bytes, noise])
def test_a_damaged_file_is_set_aside_whole_and_a_new_one_begun(path: Path, damage: Any) -> None:
    fill(path)
    damage(path)
    damaged = path.read_bytes()
    store = opened(path)
    assert store.set_aside is not None and store.set_aside.startswith(f"{path}.damaged-")
    assert Path(store.set_aside).read_bytes() == damaged
    assert store.modules() == {} and store.events(10) == []
    asyncio.run(store.save_wanted({"test/one": True}))
    store.close()
    store = opened(path)
    assert store.set_aside is None and store.modules() == {"test/one": StoredModule(started=True)}
    store.close()


def test_a_second_damaged_file_does_not_overwrite_the_first(path: Path) -> None:
    asides = set()
    for content in (b"first " * 1000, b"second " * 1000):
        path.write_bytes(content)
        store = opened(path)
        store.close()
        asides.add(Path(str(store.set_aside)).read_bytes())
    assert asides == {b"first " * 1000, b"second " * 1000}


def test_a_row_that_cannot_be_read_costs_no_other(path: Path) -> None:
    fill(path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE events SET event = CAST(x'ff7b' AS TEXT) WHERE seq = 499")
        database.execute("INSERT INTO configured VALUES ('test/one', 'bad', '{')")
    database.close()
    store = opened(path)
    assert store.set_aside is None
    assert [event["seq"] for event in store.events(3)] == [498, 500]
    assert store.modules()["test/one"].configured == {"key": "a value"}
    store.close()


NO_TEXT = "CAST(x'ff7b' AS TEXT)"
DAMAGES = [
    f"UPDATE wanted SET module_id = {NO_TEXT} WHERE module_id = 'test/two'",
    f"UPDATE wanted SET started = {NO_TEXT} WHERE module_id = 'test/two'",
    f"INSERT INTO replicas VALUES ('test/two', {NO_TEXT})",
    "INSERT INTO replicas VALUES ('test/two', -3)",
    f"INSERT INTO configured VALUES ({NO_TEXT}, 'bad', '1')",
    f"INSERT INTO configured VALUES ('test/two', {NO_TEXT}, '1')",
    f"INSERT INTO configured VALUES ('test/two', 'bad', {NO_TEXT})",
    "INSERT INTO events VALUES (501, '17')",
    f"INSERT INTO experiments VALUES (2, {NO_TEXT}, NULL)",
    f"INSERT INTO experiments VALUES (2, '{{}}', {NO_TEXT})",
    "INSERT INTO experiments VALUES (2, '17', NULL)",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_in_a_row_the_others_are_read(path: Path, damage: str) -> None:
    fill(path)
    with closing(opened(path)) as store:
        asyncio.run(store.save_experiment(1, {"id": "kill-1"}, None))
        store._database.execute(damage)
        modules, experiments = store.modules(), store.experiments()
        assert modules["test/one"] == StoredModule(started=True, configured={"key": "a value"})
        assert modules.get("test/two", StoredModule()).count is None
        assert store.events(2)[-1]["seq"] == 500
        assert experiments[0] == StoredExperiment(1, {"id": "kill-1"}, None)


def test_a_lease_that_is_no_text_is_a_lease_all_the_same(store: SqliteStore) -> None:
    asyncio.run(store.save_experiment(1, {"id": "freeze-1"}, "what to undo"))
    store._database.execute(f"UPDATE experiments SET lease = {NO_TEXT}")
    assert store.experiments() == [StoredExperiment(1, {"id": "freeze-1"}, "")]


def test_an_event_has_the_number_of_its_row(store: SqliteStore) -> None:
    asyncio.run(store.append_events([(7, json.dumps({"sep": 7, "kind": "test"}))]))
    assert store.events(1) == [{"sep": 7, "kind": "test", "seq": 7}]


def test_what_a_crash_left_in_the_journal_is_there(path: Path, tmp_path: Path) -> None:
    store = opened(path)
    asyncio.run(store.save_wanted({"test/one": True}))
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for one in path.parent.glob("nexus.db*"):  # as they are at this moment
        (crashed / one.name).write_bytes(one.read_bytes())
    store.close()
    store = opened(crashed / "nexus.db")
    assert store.modules() == {"test/one": StoredModule(started=True)}
    store.close()


def test_a_value_that_is_forgotten_is_gone_and_no_other(path: Path) -> None:
    store = opened(path)
    for key in ("one", "two"):
        asyncio.run(store.save_value("test/one", key, 1))
    asyncio.run(store.forget_value("test/one", "one"))
    asyncio.run(store.forget_value("test/none", "two"))
    store.close()
    store = opened(path)
    assert store.modules() == {"test/one": StoredModule(configured={"two": 1})}
    store.close()


# No room, no rights


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=f"{tmp_path}/gone/nexus.db: No such file or directory"):
        opened(tmp_path / "gone" / "nexus.db")


def test_a_folder_in_its_place_is_named(path: Path) -> None:
    path.mkdir()
    with pytest.raises(Unusable, match=f"{path}: Is a directory"):
        opened(path)


def mounted(place: Path, options: str) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("mounting takes root")
    place.mkdir()
    if os.spawnvp(os.P_WAIT, "mount", ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]) != 0:
        pytest.skip("cannot mount here")
    yield place
    os.spawnvp(os.P_WAIT, "umount", ["umount", "-l", str(place)])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "size=400k")


def test_a_read_only_disk_is_named(small_disk: Path) -> None:
    fill(small_disk / "nexus.db")
    assert os.spawnvp(os.P_WAIT, "mount", ["mount", "-o", "remount,ro", str(small_disk)]) == 0
    with pytest.raises(Unusable, match="Read-only file system"):
        opened(small_disk / "nexus.db")


def test_a_full_disk_refuses_the_write_by_name_and_takes_the_next_when_there_is_room(
    small_disk: Path,
) -> None:
    store = opened(small_disk / "nexus.db")
    asyncio.run(store.save_value("test/one", "key", "before"))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError):
        ballast.write_bytes(b"x" * 500_000)
    with pytest.raises(NotPossible) as refused:
        for _ in range(50):
            asyncio.run(store.save_value("test/one", "key", "x" * 10_000))
    assert "not stored: " in refused.value.message and "full" in refused.value.message
    assert refused.value.hint == f"df -h {small_disk}/nexus.db"
    ballast.unlink()
    asyncio.run(store.save_value("test/one", "key", "after"))
    assert store.modules()["test/one"].configured == {"key": "after"}
    store.close()


def test_a_disk_too_full_to_begin_with_is_named(small_disk: Path) -> None:
    with pytest.raises(OSError):
        (small_disk / "ballast").write_bytes(b"x" * 500_000)
    with pytest.raises(Unusable, match="full"):
        opened(small_disk / "nexus.db")


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_on_a_full_disk_all_that_was_stored_is_there_and_nothing_is_taken_until_there_is_room(
    small_disk: Path, end: str
) -> None:
    path = small_disk / "nexus.db"
    fill(path)
    if end == "killed":
        asyncio.run(with_a_journal(path))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError):
        ballast.write_bytes(b"x" * 500_000)

    store = opened(path)
    assert store.modules()["test/one"].configured == {"key": "a value"}
    assert store.modules()["test/two"].started is False
    assert len(store.events(500)) == 500
    assert len(store.troubles) == 1 and "full" in store.troubles[0]
    with pytest.raises(NotPossible, match=r"not stored: .* full"):
        asyncio.run(store.save_wanted({"test/two": True}))
    assert store.modules()["test/two"].started is False

    ballast.unlink()
    store.try_again()
    asyncio.run(store.save_wanted({"test/two": True}))
    assert store.troubles == []
    store.close()
    store = opened(path)
    assert (store.modules()["test/one"].started, store.modules()["test/two"].started) == (True, True)
    store.close()


async def with_a_journal(path: Path) -> None:
    """Leave the file as a nexusd that was killed leaves it, with half of it in the journal; not the journal's index."""
    store = opened(path)
    await store.save_wanted({"test/three": True})
    journal = Path(f"{path}-wal").read_bytes()
    content = path.read_bytes()
    store.close()
    path.write_bytes(content)
    Path(f"{path}-wal").write_bytes(journal)


def test_a_disk_with_room_is_told_of_by_itself(small_disk: Path) -> None:
    store = opened(small_disk / "nexus.db")
    assert store.troubles == []
    store.close()


# Experiments


def test_an_experiment_comes_back_with_its_lease_until_it_has_none(store: SqliteStore, path: Path) -> None:
    asyncio.run(store.save_experiment(1, {"id": "kill-1", "verdict": None}, "what to undo"))
    with closing(opened(path)) as other:
        assert other.experiments() == [StoredExperiment(1, {"id": "kill-1", "verdict": None}, "what to undo")]
    asyncio.run(store.save_experiment(1, {"id": "kill-1", "verdict": "well"}, None))
    assert store.experiments() == [StoredExperiment(1, {"id": "kill-1", "verdict": "well"}, None)]


def test_old_reports_go_and_a_lease_never_does(store: SqliteStore) -> None:
    asyncio.run(store.save_experiment(1, {"id": "kill-1"}, "what to undo"))
    for number in range(2, KEPT_EXPERIMENTS + 4):
        asyncio.run(store.save_experiment(number, {"id": f"kill-{number}"}, None))
    numbers = [one.number for one in store.experiments()]
    assert (numbers[:2], numbers[-1], len(numbers)) == ([1, 4], KEPT_EXPERIMENTS + 3, KEPT_EXPERIMENTS + 1)


def test_a_lease_whose_report_is_damaged_is_undone_all_the_same(store: SqliteStore, path: Path) -> None:
    asyncio.run(store.save_experiment(1, {"id": "kill-1"}, "what to undo"))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE experiments SET report = 'x'")
    assert store.experiments() == [StoredExperiment(1, {}, "what to undo")]


def test_a_store_that_another_has_open_can_be_examined(path: Path, store: SqliteStore) -> None:
    asyncio.run(store.save_wanted({"test/one": True}))
    SqliteStore(str(path)).examine()
    assert store.modules() == {"test/one": StoredModule(started=True)}


def test_what_is_not_for_this_version_is_told_and_left_as_it_is(path: Path, store: SqliteStore) -> None:
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 2")
    with pytest.raises(Unusable, match="of a newer nexusd: its tables are 2, not 1"):
        SqliteStore(str(path)).examine()


@pytest.mark.parametrize("content", [b"", b"no database at all, and longer than a page" * 200])
def test_what_is_no_store_does_not_pass_an_examination(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Unusable):
        SqliteStore(str(path)).examine()
    assert path.read_bytes() == content


def test_an_examination_makes_no_store(path: Path) -> None:
    with pytest.raises(Unusable):
        SqliteStore(str(path)).examine()
    assert not path.exists()
