"""Has msgspec work out at import how to read a type.

Left alone it does so at the type's first use; where two threads are first at once, the second reads what is half
made and the process dies of SIGSEGV (seen with 0.22: manifests are read in a thread while the keeper's notes come in).
"""

import msgspec

from nexusd.domain.units import parse_unit


def prepare(*kinds: type[msgspec.Struct]) -> None:
    """To be called where the types are defined, or before another thread can use them."""
    for kind in kinds:
        msgspec.json.Decoder(kind, dec_hook=parse_unit)
