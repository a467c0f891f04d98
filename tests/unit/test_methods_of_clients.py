"""nexusctl/methods.py is what the daemon's table says: a method for each row, a parameter for each parameter."""

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

from nexusctl import methods

ROOT = Path(__file__).parents[2]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_client", ROOT / "docs" / "generate_client.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_methods_are_up_to_date() -> None:
    assert (ROOT / "nexusctl" / "methods.py").read_text() == generator().text(), (
        "docs/generate_client.py is due"
    )


def test_every_row_of_the_table_has_a_method_that_takes_its_parameters() -> None:
    for row in generator().described()["methods"]:
        for kind in (methods.Methods, methods.AsyncMethods):
            method = getattr(kind, row["name"].removeprefix("rpc."))
            taken = list(inspect.signature(method).parameters)
            assert taken == ["self", *(param["name"] for param in row["params"])], row["name"]


def test_what_is_audited_is_what_is_not_asked_twice() -> None:
    rows = generator().described()["methods"]
    assert {row["name"] for row in rows if row["x-audited"]} == methods.ACTIONS
