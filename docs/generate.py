"""Writes what the docs take from the definitions: module.schema.json, and the tables of manifest.md and metrics.md.

Run as `python docs/generate.py` from the repository; a test tells when it is due.
"""

import json
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from nexusd.domain.manifest_reference import manifest_schema, manifest_tables  # noqa: E402
from nexusd.system.families import tables  # noqa: E402

BEGIN = "<!-- the tables are generated: python docs/generate.py -->\n"


def schema_text() -> str:
    """The text of module.schema.json."""
    return json.dumps(manifest_schema(), indent=2, ensure_ascii=False) + "\n"


def page_text(page: str, made: str | None = None) -> str:
    """The text of manifest.md, or of the page whose tables are given, with what is written by hand as it stands."""
    written, _, _ = page.partition(BEGIN)
    return f"{written}{BEGIN}\n{manifest_tables() if made is None else made}"


if __name__ == "__main__":
    (DOCS / "module.schema.json").write_text(schema_text(), encoding="utf-8")
    page = DOCS / "manifest.md"
    page.write_text(page_text(page.read_text(encoding="utf-8")), encoding="utf-8")
    page = DOCS / "metrics.md"
    page.write_text(page_text(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")
