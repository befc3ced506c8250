"""The file of a comparison: its numbers are those of the table and the difference, names are data, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paging
import pytest

from torchledger import Comparison, Ledger, UserError, compare
from torchledger.cli import main

pytestmark = paging.needs_libraries
QUANTITIES = ("params", "macs", "flops", "bytes_read", "bytes_written", "activation_bytes", "peak")


def written(comparison: Comparison, folder: Path, **options: Any) -> paging.Elements:
    path = folder / "compared.html"
    comparison.save_html(path, **options)
    return paging.Elements(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("unknown", [False, True])
def test_cells_are_those_of_the_tables(tmp_path: Path, unknown: bool) -> None:
    both = paging.comparison(unknown)
    data = written(both, tmp_path).data
    ledgers = [model.ledger for model in both.models]
    shown = compare(*ledgers, names=data["names"], by=QUANTITIES)
    assert paging.rows(data["models"]) == shown.table.to_json()["rows"]
    expected: Any = shown.difference().to_json()
    found = data["difference"]
    # The page has every row and hides by itself; the table shows those that differ and cost anything.
    rows = paging.rows(found)
    kept = [row for place, row in enumerate(rows) if row["change"] != "unchanged" and place not in set(found["free"])]
    assert kept == [row for row in expected["rows"] if row["change"] != "other"] and 5 < len(kept) < len(rows)
    assert found["total"] == expected["total"]
    for quantity in ("macs", "peak_bytes"):
        changes = [row[f"{quantity}_change"] for row in rows]
        assert found["total"][f"{quantity}_change"] == ("?" if "?" in changes else sum(changes))
    assert [rows[place]["kind"] for place in found["replaced"]] == ["Linear -> LayerNorm"]


def test_three_models_have_no_difference(tmp_path: Path) -> None:
    ledgers = [paging.ledger(unknown=False)] * 3
    data = written(compare(*ledgers, by=["params", "flops"]), tmp_path).data
    assert data["difference"] is None and data["chosen"] == "flops"
    assert data["names"] == ["Net", "Net (2)", "Net (3)"]
    assert "top1" not in data["models"]["columns"]
    data = written(compare(*ledgers, by=["top1"], top1=[None, 56.5, 70]), tmp_path).data
    assert [row["top1"] for row in paging.rows(data["models"])] == [None, 56.5, 70.0]
    assert data["chosen"] == "params", "top1 is no part of a layer"


def test_a_run_without_allocations_has_no_peak(tmp_path: Path) -> None:
    whole = paging.ledger(unknown=False)
    bare = Ledger.from_json({**whole.to_json(), "allocations": []})
    data = written(compare(bare, bare, by=["peak", "params"]), tmp_path).data
    assert "peak_bytes" not in [quantity["name"] for quantity in data["quantities"]] and data["chosen"] == "params"
    assert "peak" not in " ".join([*data["models"]["columns"], *data["difference"]["columns"]])
    data = written(compare(bare, whole), tmp_path).data
    assert [row["peak_bytes"] for row in paging.rows(data["models"])] == [None, whole.memory().peak_bytes]
    for row in (*paging.rows(data["difference"]), data["difference"]["total"]):
        assert [row[f"peak_bytes_{part}"] for part in ("before", "after", "change")] == [None] * 3


@pytest.mark.parametrize(
    ("threshold", "amount", "is_share"), [(0, 0, False), ("1%", 0.01, True), ("10K", 10_000, False), (5, 5, False)]
)
def test_where_the_page_starts(tmp_path: Path, threshold: Any, amount: float, is_share: bool) -> None:
    limit = written(paging.comparison(), tmp_path, threshold=threshold).data["difference"]["limit"]
    assert (limit["amount"], limit["is_share"]) == (amount, is_share)


def test_axes_are_logarithmic_where_values_lie_far_apart(tmp_path: Path) -> None:
    small, large = paging.ledger(unknown=False), paging.ledger(unknown=False, training=True)
    data = written(compare(small, large), tmp_path).data
    # A training step has thrice the macs, less what the input's gradient would cost; 20 times is far.
    assert data["logarithmic"] == {"params": False, "macs": False}
    from torchledger.report.scatter import is_logarithmic

    assert is_logarithmic([1, 21]) and not is_logarithmic([1, 20]) and not is_logarithmic([0, 100])


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    data = written(paging.comparison(unknown=True), tmp_path).data
    assert data["in_the_way"]["unknown"] == ["pagetest::_values (1)"]
    assert not any(note.startswith(("unknown", "assumed")) for note in data["notes"])
    assert any(note.startswith("not in peak: ") for note in data["notes"])
    assert [note.split(":")[0] for note in data["difference"]["notes"]] == [
        f"peak of {model.name}" for model in paging.comparison(unknown=True).models
    ]


def test_names_are_data_and_the_file_asks_for_nothing(tmp_path: Path) -> None:
    elements = written(paging.comparison(), tmp_path)
    assert "img" not in {tag for tag, _ in elements.found}
    assert elements.text("title") == f"before, after{paging.IMAGE}"
    links = [said[name] for _, said in elements.found for name in ("src", "href", "action", "data") if name in said]
    assert links == ["#views"]
    modules = {row["module"] for row in paging.rows(elements.data["difference"])}
    assert modules >= {f"named.{name}" for name in paging.HOSTILE}


def test_both_pages_have_one_frame(tmp_path: Path) -> None:
    """The frame, its style and the shared scripts are one file each: neither page has a copy of its own."""
    paging.ledger().save_html(tmp_path / "ledger.html")
    ledger = paging.Elements((tmp_path / "ledger.html").read_text(encoding="utf-8"))
    compared = written(paging.comparison(), tmp_path)
    styles = [
        [text for (tag, _), text in zip(page.found, page.texts, strict=True) if tag == "style"]
        for page in (ledger, compared)
    ]
    assert styles[0] == styles[1]
    policies = [
        next(said["content"] for _, said in page.found if said.get("http-equiv") == "Content-Security-Policy")
        for page in (ledger, compared)
    ]
    assert policies[0] != policies[1], "each names its own script"
    assert all(policy is not None and policy.startswith("default-src 'none'; ") for policy in policies)


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "compared.html"
    path.write_text("as it was")
    with pytest.raises(UserError, match="threshold is 'much'"):
        paging.comparison().save_html(path, threshold="much")
    with pytest.raises(UserError, match="there is no folder"):
        paging.comparison().save_html(tmp_path / "no" / "compared.html")
    assert [found.name for found in tmp_path.iterdir()] == ["compared.html"] and path.read_text() == "as it was"


# ---- the command


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as done:
        main(["compare", *map(str, words)])
    return int(done.value.code or 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("alexnet", "vgg11", "--by", "macs", "--html", "a.html", "--threshold", "1%") == 0
    assert "alexnet" in capsys.readouterr().out, "the table is printed all the same"
    data = paging.Elements(Path("a.html").read_text(encoding="utf-8")).data
    assert data["names"] == ["alexnet", "vgg11"] and data["difference"]["limit"]["text"] == "1% of the largest change"
    assert [row["top1"] for row in paging.rows(data["models"])] == [56.522, 69.02]
    assert "top-1 of alexnet, vgg11: torchvision, IMAGENET1K_V1" in " ".join(data["notes"]), "though --by lacks it"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("alexnet", "vgg11", "--html", "-"), "a page goes to a file"),
        (("alexnet", "vgg11", "--html", "no/a.html"), "there is no folder"),
        (
            ("alexnet", "vgg11", "vgg13", "--html", "a.html", "--threshold", "1%"),
            "--threshold 1% needs two models and --difference or --html; got 3 sources\n",
        ),
        (("alexnet", "vgg11", "--html", "a.html", "-o", "a.html"), "--html and --output name one file, 'a.html'"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
