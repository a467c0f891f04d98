"""What the kernel under these tests can do, tried rather than told by its version."""

from __future__ import annotations

import fcntl
import os
import struct

_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO, of 64 bytes (linux/pidfd.h)
_INFO_EXIT = 1 << 3  # PIDFD_INFO_EXIT, since Linux 6.15
_EXIT_CODE_AT = 60  # the last of 14 fields


def _pidfds_tell() -> bool:
    """Whether a pidfd tells the status of a process that somebody else has reaped already."""
    child = os.fork()
    if child == 0:
        os._exit(9)
    pidfd = os.pidfd_open(child)
    os.waitpid(child, 0)
    info = bytearray(struct.pack("=Q56x", _INFO_EXIT))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:  # before 6.13 the question is unknown, before 6.15 there is no answer
        return False
    finally:
        os.close(pidfd)
    (mask,) = struct.unpack_from("=Q", info)
    (status,) = struct.unpack_from("=i", info, _EXIT_CODE_AT)
    return bool(mask & _INFO_EXIT) and os.waitstatus_to_exitcode(status) == 9


PIDFDS_TELL = _pidfds_tell()
