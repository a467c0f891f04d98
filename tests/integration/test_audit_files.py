"""The audit log on a real disk: written, turned over, cut, tampered with, found again by the next nexusd."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nexusd.domain.audit import BEGUN, Entry
from nexusd.domain.errors import NotPossible
from nexusd.system import audit, audit_files
from nexusd.system.audit import AuditLog

BOUND_S = 20

Story = Callable[[AuditLog], Coroutine[Any, Any, Any]]


def entry(method: str = "stop_module", outcome: str = BEGUN, **more: Any) -> Entry:
    return Entry(
        "2026-01-01T00:00:00.000000Z", "alice", 1000, 7, method, {"module_id": "a/b"}, outcome, **more
    )


class House:
    """The folders of one log, and nexusds that use it one after the other."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "logs" / "audit"
        self.head = home / "audit.head"
        self.current = self.folder / "audit.log"

    def tell(self, story: Story, *, max_size: int = 1 << 20, files: int = 5, killed: bool = False) -> Any:
        """A story in the life of one nexusd, which is told of the start and, unless killed, of the end."""

        async def main() -> Any:
            log = AuditLog(str(self.folder), str(self.head), max_size=max_size, files=files)
            log.open(version="1")
            try:
                return await story(log)
            finally:
                if killed:
                    log._thread.shutdown(wait=True)
                    log._files.close()  # as the kernel does
                else:
                    log.close()

        return asyncio.run(asyncio.wait_for(main(), BOUND_S))

    def fill(self, count: int, **options: Any) -> None:
        async def story(log: AuditLog) -> None:
            for _ in range(count):
                seq = await log.begin(entry())
                log.add(entry(outcome="ok", begun=seq))

        self.tell(story, **options)

    def findings(self) -> list[str]:
        async def story(log: AuditLog) -> list[str]:
            await log.begin(entry())
            return [str(one) for one in (await log.verify({})).findings]

        found: list[str] = self.tell(story)
        return found

    def troubles(self) -> list[str]:
        async def story(log: AuditLog) -> list[str]:
            await log.begin(entry())
            return log.troubles

        found: list[str] = self.tell(story)
        return found

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.current.read_text().splitlines()]

    def rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        self.current.write_text("".join(change(self.current.read_text().splitlines(keepends=True))))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_line_is_in_the_file_when_the_command_may_run(house: House) -> None:
    async def story(log: AuditLog) -> None:
        seq = await log.begin(entry())
        last = house.lines()[-1]
        assert (last["seq"], last["outcome"], last["principal"]) == (seq, "begun", "alice")
        assert last["prev"] == house.lines()[-2]["hash"]

    house.tell(story)


def test_lines_that_wait_together_share_one_wait_for_the_disk(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    gate = threading.Event()
    real = os.fdatasync

    def slow(descriptor: int) -> None:
        assert gate.wait(BOUND_S)
        syncs.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(audit_files.os, "fdatasync", slow)

    async def story(log: AuditLog) -> None:
        waiting = [log.begin(entry()) for _ in range(50)]
        await asyncio.sleep(0)  # the loop goes on while the disk does not
        gate.set()
        assert len(set(await asyncio.gather(*waiting))) == 50

    house.tell(story)
    assert len(syncs) < 10


def test_the_files_are_for_nexusd_s_user_alone(house: House) -> None:
    house.folder.mkdir(parents=True, mode=0o755)
    house.current.touch(mode=0o644)
    house.fill(1)
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (house.folder, house.current, house.head)]
    assert modes == [0o700, 0o600, 0o600]


def test_the_next_nexusd_continues_the_chain(house: House) -> None:
    house.fill(3)
    house.fill(3)
    assert [line["method"] for line in house.lines()].count("nexusd.start") == 2
    assert [line["seq"] for line in house.lines()] == list(range(1, 17))
    assert house.findings() == []


def test_rotation_keeps_the_chain_and_the_bound_of_files(house: House) -> None:
    house.fill(100, max_size=4096, files=3)
    names = sorted(path.name for path in house.folder.iterdir())
    assert len(names) == 3 and names[-1] == "audit.log"
    assert all(os.stat(house.folder / name).st_size <= 4096 for name in names)
    older = (house.folder / names[1]).read_text().splitlines()
    assert json.loads(older[0])["seq"] == int(names[1].split(".")[1])
    assert house.lines()[0]["prev"] == json.loads(older[-1])["hash"]
    assert house.findings() == []


def test_a_rotated_file_that_is_missing_is_found(house: House) -> None:
    house.fill(30, max_size=4096)
    oldest, taken, *_ = sorted(path for path in house.folder.iterdir() if path.name != "audit.log")
    following = sorted(house.folder.iterdir())[2]
    first, last = (
        json.loads(line)["seq"]
        for line in taken.read_text().splitlines()[:: len(taken.read_text().splitlines()) - 1]
    )
    taken.unlink()
    assert house.findings() == [
        f"{following.name} line 1: records {first} to {last} are missing before this line"
    ]
    oldest.unlink()
    assert house.findings()[0].startswith(f"{following.name} line 1: records 1 to {last} are missing")


def test_what_is_wrong_in_a_file_is_found_by_line(house: House) -> None:
    house.fill(5)
    house.rewrite(lambda lines: [*lines[:3], lines[3].replace("alice", "carol"), *lines[4:]])
    assert house.findings() == ["audit.log line 4: record 4 was changed: its hash is not that of its content"]


def test_a_cut_end_stays_missing_for_everybody_who_verifies_it_later(house: House) -> None:
    house.fill(5)  # 12 records
    house.rewrite(lambda lines: lines[:9])
    assert house.troubles() == [
        "the audit log is not as it was left (missing: records 10 to 12); nexusctl audit verify"
    ]
    assert house.lines()[9]["method"] == "nexusd.recovered"
    assert house.lines()[9]["params"] == {"missing": "records 10 to 12"}
    assert house.troubles() == []  # told once; what it did is found for ever
    assert house.findings() == ["audit.log line 10: records 10 to 12 are missing before this line"]


def test_a_log_that_is_gone_is_missing_since_the_head_knows_of_it(house: House) -> None:
    house.fill(5)
    house.current.unlink()
    assert house.findings() == ["audit.log line 1: records 1 to 12 are missing before this line"]


def test_a_head_that_is_gone_is_told_and_costs_no_record(house: House) -> None:
    house.fill(2)
    house.head.unlink()
    assert house.troubles() == [
        "the audit log is not as it was left (head: was not there); nexusctl audit verify"
    ]
    assert house.findings() == []


def test_a_half_line_is_taken_off_and_kept_in_a_record(house: House) -> None:
    house.fill(2, killed=True)
    with open(house.current, "a") as file:
        file.write('{"seq":6,"time":"2026')
    assert house.troubles() == []  # what a power cut leaves is nobody's fault
    (told,) = [line for line in house.lines() if line["method"] == "nexusd.recovered"]
    assert told["params"] == {"half_line": '{"seq":6,"time":"2026'}
    assert house.findings() == []


def test_a_log_that_is_nothing_but_a_half_line_is_begun_anew(house: House) -> None:
    house.folder.mkdir(parents=True)
    house.current.write_text('{"seq":1')
    house.fill(1)
    assert house.lines()[0]["params"] == {"half_line": '{"seq":1'}
    assert house.findings() == []


def test_a_command_in_the_midst_of_which_nexusd_died_is_told_as_interrupted(house: House) -> None:
    async def story(log: AuditLog) -> int:
        done = await log.begin(entry("start_module"))
        log.add(entry("start_module", outcome="ok", begun=done))
        return await log.begin(entry("stop_module"))

    seq = house.tell(story, killed=True)
    house.fill(0)
    told = [line for line in house.lines() if line["outcome"] == "interrupted"]
    assert [(line["method"], line["begun"], line["principal"]) for line in told] == [
        ("stop_module", seq, "alice")
    ]
    house.fill(0)
    assert len([line for line in house.lines() if line["outcome"] == "interrupted"]) == 1


@pytest.mark.parametrize("damage", [b'{"method":"\xff"}\n', b'{"params":{"a":' + b"[" * 5000 + b"\n"])
def test_a_line_that_cannot_be_read_hides_none_of_the_others(house: House, damage: bytes) -> None:
    house.fill(1)
    with open(house.current, "ab") as file:
        file.write(damage)

    async def story(log: AuditLog) -> list[str]:
        await log.begin(entry())  # by then the line of the start is there
        return [json.loads(line)["method"] for line in await log.records(2, 0, None)]

    assert house.tell(story) == ["nexusd.start", "stop_module"]
    assert house.findings()


def test_records_that_nexusd_did_not_get_to_note_are_told_and_no_fault(house: House) -> None:
    house.fill(1)
    noted = house.head.read_bytes()
    house.fill(1, killed=True)
    house.head.write_bytes(noted)
    assert house.troubles() == []
    assert {"after_head": 3} in [line["params"] for line in house.lines()]
    assert house.findings() == []


def test_what_another_writes_while_nexusd_runs_is_noticed(house: House) -> None:
    async def story(log: AuditLog) -> list[str]:
        await log.begin(entry())
        house.rewrite(lambda lines: lines[:-1])
        await log.begin(entry())
        return log.troubles

    (told,) = house.tell(story)
    assert "missing: records 2 to 2" in told
    assert house.findings() == ["audit.log line 2: record 2 is missing before this line"]


def test_records_that_another_adds_while_nexusd_runs_are_not_taken_for_its_own(house: House) -> None:
    async def story(log: AuditLog) -> list[str]:
        mark = log._files.mark if await log.begin(entry()) else None
        assert mark is not None
        line, _ = audit_files.sealed(b'{"method":"forged"}', mark)
        with open(house.current, "ab") as file:
            file.write(line + b"\n")
        await log.begin(entry())
        return [str(one) for one in (await log.verify({})).findings]

    assert house.tell(story) == [
        "audit.log line 3: record 3 was replaced: record 4, the next, follows another",
        "audit.log line 4: record 3 stands here once more",
    ]


@pytest.mark.parametrize("gone", ["current", "head"])
def test_a_file_that_is_taken_away_while_nexusd_runs_is_made_again(house: House, gone: str) -> None:
    async def story(log: AuditLog) -> list[str]:
        await log.begin(entry())
        getattr(house, gone).unlink()
        await log.begin(entry())
        return log.troubles

    (told,) = house.tell(story)
    assert "not as it was left" in told
    assert house.current.exists() and house.head.exists()


def test_a_full_disk_refuses_commands_and_leaves_no_half_line(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[: len(data) // 2])

    async def story(log: AuditLog) -> None:
        await log.begin(entry())
        with monkeypatch.context() as patched:
            patched.setattr(audit_files.os, "write", full)
            for _ in range(3):
                with pytest.raises(NotPossible, match="the audit log cannot be written") as refused:
                    await log.begin(entry())
            assert "No space left on device" in (refused.value.reason or "")
            log.add(entry(outcome="ok", begun=2))
            with pytest.raises(NotPossible):
                await log.begin(entry())
            assert "commands are refused" in log.troubles[0]
        await log.begin(entry())
        assert log.troubles == []
        assert [line["outcome"] for line in house.lines()] == ["ok", "begun", "ok", "ok", "begun"]
        assert house.lines()[2]["method"] == "nexusd.gap"
        assert "No space left on device" in house.lines()[2]["params"]["reason"]

    with caplog.at_level(logging.ERROR):
        house.tell(story)
    assert len(caplog.records) == 1
    assert house.findings() == []


def test_however_much_is_refused_meanwhile_the_log_tells_since_when_it_could_not_be_written(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def story(log: AuditLog) -> None:
        await log.begin(entry())
        with monkeypatch.context() as patched:
            patched.setattr(audit_files.os, "write", full)
            for _ in range(audit.KEPT_FOR_LATER + 1):
                log.add(entry(outcome="denied"))
                with pytest.raises(NotPossible):
                    await log.begin(entry())
        await log.begin(entry())

    monkeypatch.setattr(audit, "KEPT_FOR_LATER", 3)
    house.tell(story)
    told = [line["method"] for line in house.lines() if line["outcome"] != "begun"]
    assert told.count("nexusd.gap") == 1 and len(told) == len(("start", "stop")) + 3
    (gap,) = (line for line in house.lines() if line["method"] == "nexusd.gap")
    assert gap["params"]["lines_lost"] == 2 and "No space left" in gap["params"]["reason"]
    assert house.findings() == []


def test_what_is_lost_after_the_log_has_told_of_the_gap_is_told_as_well(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def room_for_a_gap(descriptor: int, data: bytes) -> int:
        if b"nexusd.gap" in data:
            return real(descriptor, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def story(log: AuditLog) -> None:
        await log.begin(entry())
        with monkeypatch.context() as patched:
            patched.setattr(audit_files.os, "write", room_for_a_gap)
            for _ in range(6):
                log.add(entry(outcome="denied"))
                with pytest.raises(NotPossible):
                    await log.begin(entry())
        await log.begin(entry())

    monkeypatch.setattr(audit, "KEPT_FOR_LATER", 3)
    house.tell(story)
    lost = [line["params"].get("lines_lost", 0) for line in house.lines() if line["method"] == "nexusd.gap"]
    denied = [line for line in house.lines() if line["outcome"] == "denied"]
    assert len(lost) > 1 and sum(lost) + len(denied) == 6
    assert house.findings() == []


def test_a_folder_that_cannot_be_used_refuses_commands_until_it_can(house: House) -> None:
    house.folder.parent.mkdir()
    house.folder.write_text("a file in its place")

    async def story(log: AuditLog) -> None:
        with pytest.raises(NotPossible):
            await log.begin(entry())
        house.folder.unlink()
        assert await log.begin(entry())

    house.tell(story)
    assert house.lines()[0]["method"] == "nexusd.start"


def test_the_last_records_are_read_over_the_bounds_of_files(house: House) -> None:
    house.fill(30, max_size=4096)

    async def story(log: AuditLog) -> None:
        await log.begin(entry())  # by then the line of the start is there
        records = [json.loads(line) for line in await log.records(40, 0, None)]
        seqs = [record["seq"] for record in records]
        assert seqs == list(range(seqs[-1] - 39, seqs[-1] + 1))
        since = await log.records(1000, seqs[-1] - 3, None)
        assert [json.loads(line)["seq"] for line in since] == seqs[-3:]
        assert all(
            json.loads(line)["params"] == {"module_id": "a/b"} for line in await log.records(9, 0, "a/b")
        )
        assert await log.records(9, 0, "a/c") == []

    house.tell(story)


def test_a_link_in_the_place_of_the_file_is_not_followed(house: House, tmp_path: Path) -> None:
    house.folder.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    house.current.symlink_to(victim)

    async def story(log: AuditLog) -> None:
        with pytest.raises(NotPossible):
            await log.begin(entry())

    house.tell(story)
    assert victim.read_text() == "precious"


def test_two_nexusds_do_not_write_one_log(house: House, tmp_path: Path) -> None:
    async def story(log: AuditLog) -> None:
        await log.begin(entry())
        other = AuditLog(str(house.folder), str(tmp_path / "other.head"), max_size=1 << 20, files=5)
        other.open()
        with pytest.raises(NotPossible) as refused:
            await other.begin(entry())
        assert "another nexusd writes it" in (refused.value.reason or "")
        other.close()
        await log.begin(entry())
        assert log.troubles == []

    house.tell(story)
    assert house.findings() == []


def test_a_log_that_cannot_be_read_is_an_error_in_words(house: House) -> None:
    async def story(log: AuditLog) -> None:
        await log.begin(entry())
        os.rename(house.folder, f"{house.folder}.away")
        for reading in (log.records(1, 0, None), log.verify({})):
            with pytest.raises(NotPossible, match=r"cannot be read: .*audit: No such file"):
                await reading

    house.tell(story)


def test_a_defect_of_our_own_keeps_nobody_waiting(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(log: AuditLog) -> None:
        await log.begin(entry())
        with monkeypatch.context() as patched:
            patched.setattr(audit_files, "sealed", lambda *_: 1 / 0)
            with pytest.raises(NotPossible) as refused:
                await log.begin(entry())
        assert "a defect of nexusd" in (refused.value.reason or "")
        await log.begin(entry())

    house.tell(story)
    assert house.findings() == []
