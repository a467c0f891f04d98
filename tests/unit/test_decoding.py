"""What is read in a thread is ready to be read before there is one: else nexusd may die of SIGSEGV."""

import subprocess
import sys

# gc shows what msgspec has worked out of a type. A fresh Python, since any earlier test may have used the types.
LOOK = """
import gc, msgspec
import nexusd.daemon
from nexusd.config import File
from nexusd.domain.manifest import Definition, _Readable
from nexusd.system.notes import Note

def structs(kind, found):
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind not in found:
            found.add(kind)
            for field in msgspec.structs.fields(kind):
                structs(field.type, found)
    for inner in getattr(kind, "__args__", ()):
        structs(inner, found)
    return found

found = set()
for kind in (File, Definition, _Readable, Note):
    structs(kind, found)
unready = [kind.__name__ for kind in found if "StructInfo" not in {type(x).__name__ for x in gc.get_referents(kind)}]
print(len(found), *unready)
"""


def test_every_type_that_is_read_while_threads_run_is_ready_at_import() -> None:
    told = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True).stdout
    count, *unready = told.split()
    assert int(count) > 25 and unready == []
