"""The public surface: these names and signatures, and no others, without work at import."""

from __future__ import annotations

import inspect
import subprocess
import sys

import torchledger
from torchledger import (
    Comparison,
    Ledger,
    MemoryReport,
    Table,
    analyze,
    assert_within,
    compare,
    fit,
    savings,
    stat,
)

MODEL_ARGUMENTS = [
    "kwargs",
    "batch",
    "mode",
    "input_dtype",
    "model_dtype",
    "training",
    "loss",
    "optimizer",
    "execute",
    "rules",
    "autocast",
]


def test_names() -> None:
    assert sorted(torchledger.__all__) == dir(torchledger)
    assert set(torchledger.__all__) == {
        "AtLeast", "Comparison", "Fit", "ForwardError", "Ledger", "MemoryReport", "Rule", "Table", "UserError",
        "__version__", "analyze", "assert_within", "compare", "fit", "register_rule", "savings", "stat",
    }  # fmt: skip
    assert torchledger.__version__ == "0.1.0"


def test_signatures() -> None:
    assert list(inspect.signature(analyze).parameters) == ["model", "inputs", *MODEL_ARGUMENTS]
    assert list(inspect.signature(assert_within).parameters) == [
        "model", "inputs", "params", "trainable_params", "macs", "flops", "bytes_read", "bytes_written",
        "activation_bytes", "peak", "unknown", "baseline", "tolerance", "memory", "options",
    ]  # fmt: skip
    assert list(inspect.signature(fit).parameters) == [
        "model", "inputs", "memory", "kwargs", "device", "allocator", "accumulate", "options",
    ]  # fmt: skip
    assert list(inspect.signature(savings).parameters) == [
        "model", "inputs", "batch", "kwargs", "device", "allocator", "options",
    ]  # fmt: skip
    assert list(inspect.signature(compare).parameters) == ["ledgers", "names", "by", "device", "top1", "notes"]
    assert list(inspect.signature(Comparison.difference).parameters) == ["self", "by", "threshold"]
    assert list(inspect.signature(Ledger.save_trace).parameters) == ["self", "path", "by", "convention", "device"]
    assert list(inspect.signature(Comparison.save_html).parameters) == ["self", "path", "threshold"]
    assert list(inspect.signature(stat).parameters) == ["model", "inputs", "convention", "measure", *MODEL_ARGUMENTS]


def test_methods() -> None:
    def public(owner: type) -> set[str]:
        return {name for cls in owner.__mro__[:-1] for name in vars(cls) if not name.startswith("_")}

    assert public(Ledger) == {
        "assumptions", "by_layer", "by_module", "by_operation", "totals", "unknown",
        "from_json", "load", "memory", "save", "save_html", "save_trace", "to_json",
    }  # fmt: skip
    assert public(MemoryReport) == {
        "after_forward", "alive", "at", "fits", "least_bytes", "live", "moment", "moments", "notes", "peak",
        "peak_bytes", "reserved_bytes", "timeline", "workspaces",
        "by_category", "by_module", "by_operation", "plot", "save_chrome_trace", "to_chrome_trace", "to_json",
    }  # fmt: skip
    assert public(Comparison) == {"difference", "plot", "save_html", "table", "to_json"}
    assert public(Table) >= {"to_text", "to_csv", "to_markdown", "to_json", "to_pandas"}


def test_every_public_name_says_what_it_does() -> None:
    for name in torchledger.__all__:
        value = getattr(torchledger, name)
        if name != "__version__":
            assert value.__doc__
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                assert method.startswith("_") or not callable(function) or function.__doc__, (name, method)


def test_import_does_no_work() -> None:
    code = (
        "import sys, torchledger, torchledger.cli; print([m for m in ('torch', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() in ("[]", "['rich']")  # typer draws its help with rich


def test_what_draws_is_imported_for_printed_tables_alone() -> None:
    """And draws of random numbers while it is imported are none of the user's."""
    code = (
        "import random, sys; from torch import nn; from torchledger import analyze;"
        "table = analyze(nn.Linear(4, 3), (4,)).by_layer(); before = 'rich.console' in sys.modules;"
        "state = random.getstate(); str(table);"
        "print(before, 'rich.console' in sys.modules, state == random.getstate())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_unknown_name() -> None:
    try:
        torchledger.nonsense  # noqa: B018
    except AttributeError as error:
        assert "no attribute 'nonsense'" in str(error)
    else:
        raise AssertionError
