"""The booted system and the service in it. A machine that tests for others (CI is set) has to be able to boot one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.systemd.booted import CannotBoot, Machine
from tests.systemd.service import Service


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    try:
        machine = Machine()
    except CannotBoot as reason:
        assert not os.environ.get("CI"), reason
        pytest.skip(str(reason))
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """nexusd's units, installed and not started: write modules, then `start()`. Afterwards nothing of it is left."""
    service = Service(machine)
    try:
        yield service
    finally:
        service.close()
