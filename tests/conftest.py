"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tree itself, installed or not

from tests.running_nexus import Fifo, Nexus

# Machines that run these tests are shared: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture
def nexus() -> Iterator[Nexus]:
    """A nexusd with folders of its own: write its modules, then `start()`. Whatever is left of it fails the test."""
    nexus = Nexus()
    try:
        yield nexus
    finally:
        nexus.close()


@pytest.fixture
def gate(nexus: Nexus) -> Iterator[Fifo]:
    """A fifo at which modules wait (`read -r _ < "$GATE"`) until the test says something."""
    gate = Fifo(nexus.home / "gate")
    nexus.environment["GATE"] = str(gate.path)
    yield gate
    gate.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-reliability",
        action="store_true",
        help="write what tests/systemd measures into docs/reliability.md",
    )
