"""Which modules a command means: ids as they stand, patterns by the daemon's list; a near miss is named."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase

from nexusctl.client import RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nexusctl.client import Client

NO_SUCH_MODULE = -32002
LIKE_ENOUGH = 0.65  # of difflib's 0 to 1; with less, "nope" is taken for "mine"


def is_pattern(word: str) -> bool:
    return any(mark in word for mark in "*?[")


def is_single(words: Sequence[str]) -> bool:
    return len(words) == 1 and not is_pattern(words[0])


def known_ids(client: Client) -> list[str]:
    return ids_of(client.call("get_status"))


def ids_of(status: dict[str, Any]) -> list[str]:
    return sorted(item["id"] for item in status["modules"]["items"])


def selected(client: Client, words: Sequence[str]) -> list[str]:
    """The ids meant by the words, each once. The daemon is asked only if there is a pattern among them."""
    if not any(map(is_pattern, words)):
        return list(dict.fromkeys(words))
    return matching(words, known_ids(client))


def matching(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """As `selected`. A pattern without any match raises, before anything is done to the others."""
    chosen: dict[str, None] = {}
    for word in words:
        found = [one for one in known if fnmatchcase(one, word)] if is_pattern(word) else [word]
        if not found:
            raise no_match(word, known)
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def no_match(word: str, known: Sequence[str], paths: Sequence[str] = ()) -> RpcError:
    """The error for an id or pattern that names nothing, with what would have: `paths` hold modules on disk."""
    what = f"no module matches {word}" if is_pattern(word) else f"no such module: {word}"
    if any(_is_on_disk(word, path) for path in paths):
        data = {"kind": "no_such_module", "module_id": word, "hint": "nexusctl reload"}
        return RpcError(NO_SUCH_MODULE, f"{what}; it is on disk: nexusctl reload loads it", data)
    near = nearest(word, known)
    shown = f"'{near}'" if near and is_pattern(near) else near
    told = f"{what}; did you mean {shown}?" if near else what
    return RpcError(NO_SUCH_MODULE, told, {"kind": "no_such_module", "module_id": word, "near": near})


def _is_on_disk(word: str, path: str) -> bool:
    """Whether the daemon would find a module of this name there."""
    group, _, name = word.partition("/")
    named = bool(group and name) and "/" not in name and not {".", ".."}.intersection((group, name))
    return named and os.path.isfile(f"{path}/{word}/module.toml")


def nearest(word: str, known: Sequence[str]) -> str | None:
    """What comes nearest: all, a whole group, or the id most like the word, with its group or without."""
    import difflib  # noqa: PLC0415  wanted only after a mistake

    bare = word.replace("*", "").replace("?", "").strip("/")
    if known and bare == "all":
        return "*"
    if bare and any(one.startswith(f"{bare}/") for one in known):
        return f"{bare}/*"
    by_text = {one.partition("/")[0]: f"{one.partition('/')[0]}/*" for one in known}
    by_text |= {one.rpartition("/")[2]: one for one in reversed(known)} | {one: one for one in known}
    close = difflib.get_close_matches(bare, by_text, n=1, cutoff=LIKE_ENOUGH)
    if close:
        return by_text[close[0]]
    return next((one for one in known if bare and bare in one), None)


def with_near_match(client: Client, error: RpcError) -> RpcError:
    """The daemon's `no such module` with what was meant; every other error as it is."""
    word = error.data.get("module_id")
    if error.code != NO_SUCH_MODULE or not isinstance(word, str):
        return error
    try:
        status = client.call("get_status")
    except RpcError:  # who may start modules need not be allowed to list them
        return error
    return no_match(word, ids_of(status), status.get("module_paths") or ())
