"""From the tables of a module.toml to one frozen Manifest, or to all of its faults together.

Sections stand in `manifest_sections`, rules between keys in `manifest_rules`; files are read in `system`.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from nexusd.domain.decoding import prepare
from nexusd.domain.fields import Fault, Reading, shown
from nexusd.domain.manifest_reference import manifest_schema
from nexusd.domain.manifest_rules import Problem, problems
from nexusd.domain.manifest_sections import ID_PATTERN, ConfigKey, Manifest
from nexusd.domain.settings import converted_key
from nexusd.domain.units import Seconds, Size, parse_unit

__all__ = [
    "DEFINITIONS",
    "ConfigKey",
    "Definition",
    "Fault",
    "InvalidManifest",
    "Manifest",
    "Seconds",
    "Size",
    "manifest_schema",
    "parse_manifest",
    "valid_id",
]


class Definition(Struct, frozen=True):
    """A module as it lies on disk: its manifest, and a digest that changes when manifest or code does."""

    id: str
    folder: str
    manifest: Manifest
    digest: str


# msgspec works out a type's fields when they are first needed, and dies by SIGSEGV when two threads do that at
# once (0.22): so it is done here, for a manifest and all its sections, before there is a second thread.
DEFINITIONS = msgspec.json.Decoder(Definition, dec_hook=parse_unit)


class InvalidManifest(Exception):
    """A manifest that can't be used, with everything that is wrong in it."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


def valid_id(module_id: str) -> bool:
    """Whether this is GROUP/NAME as a module's id has to be."""
    return re.search(ID_PATTERN, module_id) is not None


def parse_manifest(raw: Mapping[str, Any], *, module_id: str, file: str) -> Manifest:
    """The manifest with all defaults filled in; raises InvalidManifest with all faults."""
    try:
        manifest = msgspec.convert({"id": module_id, **raw}, Manifest, dec_hook=parse_unit)
    except (msgspec.ValidationError, TypeError, UnicodeError) as error:
        raise InvalidManifest(_faults(raw, module_id, file, str(error))) from None
    if manifest.id != module_id or not valid_id(module_id) or next(problems(manifest), None) is not None:
        raise InvalidManifest(_faults(raw, module_id, file, "a broken rule"))
    if not manifest.config:
        return manifest
    return replace(manifest, config={name: converted_key(key) for name, key in manifest.config.items()})


def _faults(raw: Mapping[str, Any], module_id: str, file: str, otherwise: str) -> tuple[Fault, ...]:
    """Every fault: what can't be read, then the rules broken by what can be."""
    reading = Reading(raw, Manifest, file)
    _judge_id(reading, module_id)
    if reading.usable is not None:
        sound = msgspec.convert({**reading.usable, "id": module_id}, _Readable, dec_hook=parse_unit)
        fair = [problem for problem in problems(sound) if not _rests_on_a_fault(problem, reading)]
        for problem in fair:
            reading.add(*problem[:4])
    if not reading.faults:
        reading.add("", "a manifest", otherwise)
    return tuple(reading.faults)


def _rests_on_a_fault(problem: Problem, reading: Reading) -> bool:
    return any(reading.concerns(key) for key in problem.because or (problem.key,))


def _judge_id(reading: Reading, module_id: str) -> None:
    """The place is what counts; an id that is given has to say the same."""
    if not valid_id(module_id):
        expected = (
            "a folder GROUP/NAME, each of letters, digits, _ . - (at most 64), without two dots in a row"
        )
        reading.add("", expected, shown(module_id))
    given = (reading.usable or {}).get("id", module_id)
    if given != module_id:
        reading.add("id", f"{shown(module_id)}, as the folder says", shown(given))


class _Readable(Manifest, frozen=True, forbid_unknown_fields=True):
    """A manifest whose id is taken as it comes: the other rules are judged even where the id is wrong."""

    id: str = ""


prepare(Definition, _Readable)
