"""The bytes that runs write: all of them, in order, whoever dies and whatever the disk says."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kept import Kept, await_end

from nexusd.keeper.endpoints import PIPE_BYTES
from nexusd.keeper.process import COUNTED_AT_ONCE


@pytest.fixture
def kept() -> Iterator[Kept]:
    with Kept() as kept:
        yield kept


@pytest.fixture
def small_disk(kept: Kept) -> Iterator[Path]:
    """Two megabytes, for the logs."""
    if os.getuid() != 0:
        pytest.skip("mounting takes root")
    place = kept.home / "logs"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.spawnvp(os.P_WAIT, mount[0], mount) != 0:
        pytest.skip("cannot mount here")
    yield place
    os.spawnvp(os.P_WAIT, "umount", ["umount", "-l", str(place)])


def written(kept: Kept, key: str) -> str:
    """All files of a log, the oldest first."""
    path = kept.log_path(key)
    while True:
        older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda one: -int(one.suffix[1:]))
        try:
            return "".join(one.read_text() for one in (*older, *filter(Path.exists, [path])))
        except FileNotFoundError:
            continue  # it was just being turned over


def log(kept: Kept, key: str, max_bytes: int, files: int = 1000) -> dict[str, object]:
    return {"path": str(kept.log_path(key)), "max_bytes": max_bytes, "files": files}


def numbers(first: int, last: int) -> str:
    return "".join(f"{number}\n" for number in range(first, last + 1))


def test_output_and_errors_go_into_one_log_in_the_order_in_which_they_came(kept: Kept) -> None:
    assert kept.sh("one", "echo out; echo err >&2; echo again") == "out\nerr\nagain\n"


def test_the_last_bytes_are_there_when_the_end_is_told(kept: Kept) -> None:
    kept.run("one", "/bin/sh", "-c", "seq 1 100000")
    assert kept.log("one") == numbers(1, 100_000)


@pytest.mark.skipif(os.getuid() != 0, reason="others have 64 MiB of pipes in all")
def test_root_has_pipes_of_a_mebibyte(kept: Kept) -> None:
    size = "import fcntl; print(fcntl.fcntl(1, fcntl.F_GETPIPE_SZ))"
    kept.run("one", "python3", "-c", size)
    assert kept.log("one") == f"{PIPE_BYTES}\n"


def test_a_run_may_open_its_output_by_name(kept: Kept) -> None:
    assert kept.sh("one", "echo one > /dev/stdout; echo two > /proc/self/fd/2") == "one\ntwo\n"


@pytest.mark.skipif(os.getuid() != 0, reason="takes two users")
def test_a_run_of_another_user_may_open_its_output_by_name(kept: Kept) -> None:
    nobody = {"uid": 65534, "gid": 65534, "groups": []}
    assert kept.sh("one", "echo one > /dev/stdout", user=nobody, directory="/") == "one\n"


def test_rotation_loses_and_cuts_no_line(kept: Kept) -> None:
    kept.run("one", "/bin/sh", "-c", "seq 1 200000", log=log(kept, "one", 100_000))
    assert written(kept, "one") == numbers(1, 200_000)
    for path in kept.log_path("one").parent.iterdir():
        assert path.read_bytes().endswith(b"\n") and path.stat().st_size < 100_010


def test_two_runs_of_one_replica_share_its_log(kept: Kept) -> None:
    """As an old and a new generation do for a while."""
    shared = log(kept, "both", 1000)
    for key in ("old", "new"):
        kept.spawn(key, "/bin/sh", "-c", f"for n in $(seq 1 500); do echo {key} $n; done", log=shared)
    kept.all_said("exited", ["old", "new"])
    lines = written(kept, "both").splitlines()
    for key in ("old", "new"):
        assert [line for line in lines if line.startswith(key)] == [f"{key} {n}" for n in range(1, 501)]


def test_a_loud_run_does_not_silence_another(kept: Kept) -> None:
    kept.start("loud", "yes", log=log(kept, "loud", 1 << 20, files=2))
    assert kept.sh("quiet", "echo heard") == "heard\n"


# Deaths


LOUD = "import os, sys\nfor n in range(1, 400_001): print(n)\n"
STEADY = "import os\nfor n in range(1, 100_001): os.write(1, b'%d\\n' % n)\n"


@pytest.mark.parametrize("script", [LOUD, STEADY], ids=["in blocks", "line by line"])
def test_no_byte_is_lost_over_the_keepers_death(kept: Kept, script: str) -> None:
    kept.spawn("one", "python3", "-c", script, log=log(kept, "one", 300_000))
    ended = False
    for _ in range(3):
        kept.wait(lambda: kept.log("one"))
        ended = ended or any(row["say"] == "run" and row["ended"] for row in kept.replace_keeper())
    if not ended:
        kept.until("exited", "one")
    assert written(kept, "one") == numbers(1, 400_000 if script == LOUD else 100_000)


def test_a_run_goes_on_writing_while_both_are_dead_and_nothing_is_lost(kept: Kept) -> None:
    for name in ("go", "on"):
        os.mkfifo(kept.home / name)
    script = (
        "seq 1 1000; read line < go; seq 1001 2000; echo; echo done > went; read line < on; seq 2001 3000"
    )
    kept.start("one", "/bin/sh", "-c", script)
    kept.wait(lambda: kept.log("one").endswith("1000\n"))
    keeper = kept.keeper
    kept.leave()
    os.kill(keeper, 9)
    await_end(keeper)
    (kept.home / "go").write_text("now\n")
    kept.wait((kept.home / "went").exists)
    kept.connect()
    (kept.home / "on").write_text("now\n")
    kept.until("exited", "one")
    assert kept.log("one") == numbers(1, 2000) + "\n" + numbers(2001, 3000)


def test_output_breaks_for_no_run_even_when_both_are_dead(kept: Kept) -> None:
    """No SIGPIPE: the pipe's writing end can be read, too, and is held by the run itself."""
    os.mkfifo(kept.home / "go")
    pid = kept.start("one", "/bin/sh", "-c", "read line < go; echo still; echo still; echo $? > went")
    keeper = kept.keeper
    kept.leave()
    os.kill(keeper, 9)
    await_end(keeper)
    (kept.home / "go").write_text("now\n")
    await_end(pid)
    assert (kept.home / "went").read_text() == "0\n"
    kept.connect()


# A full disk


def test_a_full_disk_stops_no_run_and_all_is_written_when_there_is_room(kept: Kept, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(b"x" * (4 << 20))
    kept.run("one", "/bin/sh", "-c", "seq 1 100000", log=log(kept, "one", 10 << 20))
    kept.spawn("one", "/bin/sh", "-c", "seq 100001 200000; sleep 1000", log=log(kept, "one", 10 << 20))
    kept.until("spawned", "one")
    ballast.unlink()
    kept.wait(lambda: written(kept, "one").endswith("\n200000\n"))
    assert written(kept, "one") == numbers(1, 200_000)


def test_what_four_mebibytes_do_not_hold_is_confessed_in_the_log(kept: Kept, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(b"x" * (4 << 20))
    noise = "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do head -c 1000000 /dev/zero; done; echo > went; exec sleep 1000"
    kept.start("one", "/bin/sh", "-c", noise, log=log(kept, "one", 500_000, files=2))
    kept.wait((kept.home / "went").exists)  # nobody was blocked
    ballast.unlink()
    kept.wait(lambda: "[nexus-keeper: 7805696 bytes lost here: " in written(kept, "one"))


def test_the_trouble_is_told_with_each_pong(small_disk: Path, kept: Kept) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "ballast").write_bytes(b"x" * (4 << 20))
    kept.start("one", "/bin/sh", "-c", "seq 1 100; exec sleep 1000")
    client = kept.kept

    def troubles() -> object:
        client._say({"say": "ping", "id": 0})
        return client.troubles

    kept.wait(troubles)
    assert client.troubles == [f"{kept.log_path('one')}: No space left on device"]


def test_held_bytes_that_a_leaving_keeper_cannot_write_are_complained_of(kept: Kept) -> None:
    (kept.home / "logs").write_text("no folder")
    kept.run("one", "/bin/sh", "-c", "echo lost")
    keeper = kept.keeper
    kept.kept.dismiss()
    kept.leave()
    await_end(keeper)
    assert "5 bytes lost: " in kept.keeper_log.read_text()
    kept.connect()


def test_the_bytes_of_each_log_are_counted_over_the_end_of_its_run(kept: Kept) -> None:
    kept.run("one", "/bin/sh", "-c", "echo 1234")
    kept.kept.forget("one")
    kept.run("one", "/bin/sh", "-c", "echo 567")
    kept.run("two", "/bin/sh", "-c", "echo 89")
    counts = kept.do(kept.kept.log_bytes(20.0))
    assert counts == {str(kept.log_path("one")): 9, str(kept.log_path("two")): 3}


def test_more_logs_than_a_packet_holds_are_told_in_several(kept: Kept) -> None:
    logs = COUNTED_AT_ONCE + 1
    for number in range(logs):
        kept.run(f"run{number}", "/bin/true")
    assert len(kept.do(kept.kept.log_bytes(20.0))) == logs


def test_a_keeper_that_says_nothing_keeps_nobody_waiting_for_counts(kept: Kept) -> None:
    os.kill(kept.keeper, signal.SIGSTOP)
    assert kept.do(kept.kept.log_bytes(0.01)) == {}
    os.kill(kept.keeper, signal.SIGCONT)
