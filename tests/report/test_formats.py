"""The formats on small tables made by hand: agreement with the total, widths, hostile names, unknown amounts."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.cells import cell_len

from torchledger.report import table_to_json, to_csv, to_markdown, to_text
from torchledger.views import COUNTS, AtLeast, Cell, Column, Table

SCALES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}
HOSTILE = ("[red]x", "=HYPERLINK(1)", "a|b", "x\ny", "</script>", "`code`", "\x1b[2J", "漢字" * 20)


def full_table(**changes: object) -> Table:
    """Three layers and a view, with all that `views` may put in a table."""
    columns = (
        Column("module", "module", text=True, weight=100),
        Column("kind", "kind", text=True, weight=60),
        Column("calls", "calls", weight=10),
        Column("output_shape", "output shape", text=True, weight=70),
        Column("params", "params", weight=90),
        Column("macs", "macs", weight=80),
        Column("bytes_read", "read", "B", weight=75),
        Column("seconds_measured", "seconds", "s", weight=65),
        Column("duration_percent", "duration", "%", weight=66),
        *(Column(name, name, weight=1) for name in COUNTS),
        Column("note", "note", text=True, weight=40),
    )
    values: list[list[Cell]] = [
        ["", "Parameter", 1, "", 10, 0, 0, 0.0, 0.0, 0, 0, 0, 0, 0, ""],
        [
            "backbone.layer1.block0.conv1",
            "Conv2d",
            2,
            "1x64x55x55",
            23_296,
            70_470_400,
            695_296,
            0.00123,
            61.5,
            2,
            2,
            0,
            0,
            0,
            "",
        ],
        ["backbone.layer1.block0.view", "view", 1, "1x9216", 0, 0, 0, 0.0, 0.0, 1, 0, 1, 0, 0, ""],
        ["head.fc", "Linear", 1, "1x10", 1250, 999, 512, 0.00077, 38.5, 1, 1, 0, 0, 0, "shared with x"],
    ]
    names = [column.name for column in columns]
    rows = [dict(zip(names, row, strict=True)) for row in values]
    total: dict[str, Cell] = {c.name: "" if c.text else sum(row[c.name] for row in rows) for c in columns}  # type: ignore[misc]
    total["module"] = "total"
    fields: dict[str, object] = {
        "title": "Net, by layer, convention full, eval mode, batch 1",
        "convention": "full",
        "columns": columns,
        "rows": rows,
        "total": total,
        "notes": ["operations: 3 priced, 1 free, 0 unknown"],
        "free_rows": frozenset({2}),
    }
    return Table(**(fields | changes))  # type: ignore[arg-type]


def named(names: tuple[str, ...]) -> Table:
    table = full_table(free_rows=frozenset())
    table.rows = [table.rows[1] | {"module": name, "kind": name} for name in names]
    return table


def alexnet_end() -> Table:
    """Return the article's total, and one row of it."""
    columns = (
        Column("module", "module", text=True, weight=100),
        Column("params", "params", weight=90),
        Column("memory_mb", "memory(MB)", "MiB", weight=30),
        Column("madd", "MAdd", weight=80),
        Column("flops", "Flops", weight=75),
        Column("mem_rw_b", "MemR+W(B)", "B", weight=60),
    )
    names = [column.name for column in columns]
    row: list[Cell] = ["features.0", 23_296, 0.7385, 140_553_600, 70_470_400, 1_469_696]
    total: list[Cell] = ["total", 57_044_810, 4.1519, 1_421_458_422, 711_488_448, 237_378_896]
    rows = [dict(zip(names, row, strict=True))]
    return Table("AlexNet", "torchstat", columns, rows, dict(zip(names, total, strict=True)), exact=True)


def body(text: str) -> list[list[str]]:
    """Split the drawn table into cells: heading, rows, total."""
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if line and set(line) == {"─"}]
    assert len(rules) == 2, "a rule under the heading and one over the total"
    kept = [lines[rules[0] - 1], *lines[rules[0] + 1 : rules[1]], lines[rules[1] + 1]]
    return [re.split(r"\s{2,}", line.strip()) for line in kept]


def amount(printed: str) -> float:
    number, _, letter = printed.partition(" ")
    return float(number) * SCALES[letter.removesuffix("B")]


@pytest.mark.parametrize("name", ["params", "macs", "read (B)"])
def test_printed_column_adds_up_to_printed_total(name: str) -> None:
    head, *rows, total = body(to_text(full_table(), None))
    # Text cells may be empty, so count from the right: numbers after the shapes always stand; so drop the note.
    place = head[: head.index("note")].index(name) - head.index("note")
    numbers = [[cell for cell in row if re.fullmatch(r"[\d.]+( ?\S?B?|%| [mµn]?s)", cell)] for row in [*rows, total]]
    column = [amount(row[place]) for row in numbers]
    assert column[-1] > 0
    assert sum(column[:-1]) == pytest.approx(column[-1], rel=5e-4)


def test_numbers_scale_cell_by_cell() -> None:
    text = to_text(full_table(), None)
    for printed in (
        "70.47 M",
        "23.3 K",
        "1.25 K",
        " 999 ",
        "695.3 KB",
        "512 B",
        "1.23 ms",
        "770 µs",
        "61.50%",
        "100.00%",
    ):
        assert printed in text


def test_exact_table_prints_in_full() -> None:
    text = to_text(alexnet_end(), None)
    assert body(text)[1] == ["features.0", "23,296", "0.74", "140,553,600", "70,470,400", "1,469,696"]


def test_number_columns_align_right_and_text_left() -> None:
    lines = to_text(alexnet_end(), None).splitlines()
    assert lines[1].startswith("module") and lines[3].startswith("features.0")
    assert len(lines[1]) == len(lines[3]) == len(lines[5]) == len(lines[2])


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("table", [full_table(), named(HOSTILE), alexnet_end()], ids=["full", "hostile", "torchstat"])
def test_every_line_fits(table: Table, width: int) -> None:
    if width == 1 and table.rows[0]["module"] == HOSTILE[0]:
        table = named(HOSTILE[:-1])  # a wide character takes two
    table.notes = ["assumed: " + "something.very.long." * 12, *table.notes]
    assert max(map(cell_len, to_text(table, width).splitlines())) <= width
    assert to_text(table, width).count("Net" if table.convention == "full" else "params") >= (width > 60)


def test_columns_go_by_weight_and_are_named() -> None:
    assert "not shown at this width" not in to_text(full_table(), None)
    text = to_text(full_table(), 80)
    assert "not shown at this width: kind, calls, seconds, note" in " ".join(text.split())
    assert "backbone.layer1.block0.conv1" in text, "text is whole while light columns can go"
    text = to_text(full_table(), 66)
    assert body(text)[0] == ["module", "output shape", "params", "macs", "read (B)"]
    assert re.search(r"backbon[^ ]*…[^ ]*conv1 ", text), "light columns were not enough, so the path is shortened"


def test_path_keeps_twelve_characters_before_heavy_columns_go() -> None:
    table = full_table()
    for width in range(30, 80):
        head, *rows, _ = body(to_text(table, width))
        path = rows[1][0]
        assert path == table.rows[1]["module"] or ("…" in path and len(path) >= 12)
        weights = {"module": 100, "params": 90, "macs": 80, "read (B)": 75, "output shape": 70}
        dropped = [weight for name, weight in weights.items() if name not in head]
        assert max(dropped, default=0) < min(weight for name, weight in weights.items() if name in head)


def test_columns_without_news_are_left_out() -> None:
    table = full_table()
    head = body(to_text(table, None))[0]
    assert {"calls", "note"} <= set(head) and not set(COUNTS) & set(head)
    for row in table.rows:
        row |= {"calls": 1, "note": "", "unknown": 0}
    assert not {"calls", "note"} & set(body(to_text(table, None))[0])
    table.rows[1]["unknown"] = 1
    assert "unknown" in body(to_text(table, None))[0]
    assert "| unknown |" in to_markdown(table)


def test_free_rows_only_in_csv_and_json() -> None:
    table = full_table()
    for drawn in (to_text(table, None), to_markdown(table)):
        assert "block0.view" not in drawn
        assert "1 row of free operations not shown" in drawn
    assert "block0.view" in to_csv(table) and "block0.view" in json.dumps(table_to_json(table))
    assert "free operations" not in to_text(full_table(free_rows=frozenset()), None)


def test_root_has_a_name_where_people_read() -> None:
    assert body(to_text(full_table(), None))[1][0] == "(root)"
    assert "| (root) |" in to_markdown(full_table())
    assert to_csv(full_table()).splitlines()[1].startswith(",Parameter,")


def test_unknown_and_uncounted_amounts() -> None:
    table = full_table()
    table.rows[0]["macs"] = None
    table.rows[1]["macs"] = AtLeast(70_470_400)
    table.rows[3]["macs"] = AtLeast(0)
    table.total["macs"] = AtLeast(70_470_400)
    cells = [next(c for c in row[3:] if c in ("-", "?") or c.startswith(">=")) for row in body(to_text(table, None))[1:]
             if any(c in ("-", "?") or c.startswith(">=") for c in row[2:])]  # fmt: skip
    assert len(cells) == 4 or cells
    text, markdown = to_text(table, None), to_markdown(table)
    assert text.count(">=70.47 M") == 2 and re.search(r" -  ", text) and re.search(r" \?  ", text)
    assert markdown.count("&gt;=70.47 M") == 2 and "| - |" in markdown and "| ? |" in markdown
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["macs"] for row in rows] == ["-", ">=70470400", "0", "?"]
    saved = table_to_json(table)
    assert [row["macs"] for row in saved["rows"]] == [None, {"at_least": 70_470_400}, 0, {"at_least": 0}]  # type: ignore[attr-defined]
    assert saved["total"]["macs"] == {"at_least": 70_470_400}  # type: ignore[index]
    table.exact = True
    assert to_text(table, None).count(">=70,470,400") == 2


def test_hostile_names_in_text() -> None:
    text = to_text(named(HOSTILE), None)
    for shown in ("[red]x", "=HYPERLINK(1)", "a|b", r"x\ny", "</script>", "`code`", r"\x1b[2J"):
        assert text.count(shown) == 2, shown
    assert "\x1b" not in text
    assert len(body(text)) == len(HOSTILE) + 2


def test_hostile_title_and_notes() -> None:
    table = full_table(title="[red]N\x1b[2J\n<b>|`", notes=["[red]n\x1b[2J\n<b>`"])
    text, markdown = to_text(table, None), to_markdown(table)
    assert text.startswith("[red]N\\x1b[2J\\n<b>|`\n") and text.endswith("[red]n\\x1b[2J\\n<b>`\n")
    assert "\x1b" not in markdown and "<b>" not in markdown and re.search(r"(?<!\\)`", markdown) is None


def test_hostile_names_in_csv() -> None:
    names = (*HOSTILE, "+1", "-1", "@x", "\tx", "\rx", "a\rb", 'say "hi", x')
    rows = list(csv.DictReader(io.StringIO(to_csv(named(names)), newline="")))
    expected = ["'" + name if name[0] in "=+-@\t\r" else name.replace("\x1b", "\\x1b") for name in names]
    assert [row["module"] for row in rows] == expected
    assert sum(name.startswith("'") for name in expected) == 6


def test_hostile_names_in_markdown() -> None:
    markdown = to_markdown(named(HOSTILE))
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == len(HOSTILE) + 3
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, "as many cells in each row"
    for shown in (r"\[red\]x", r"a\|b", r"x\\ny", "&lt;/script&gt;", r"\`code\`"):
        assert markdown.count(shown) == 2, shown
    assert "<" not in markdown and "\x1b" not in markdown


def test_markdown_total_is_bold_and_numbers_align_right() -> None:
    lines = to_markdown(alexnet_end()).splitlines()
    assert lines[0] == "### AlexNet"
    assert lines[3] == "| :--- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[4] == "| features.0 | 23,296 | 0.74 | 140,553,600 | 70,470,400 | 1,469,696 |"
    assert lines[5].startswith("| **total** | **57,044,810** | **4.15** |")
    assert to_markdown(full_table()).endswith("\n- operations: 3 priced, 1 free, 0 unknown\n")


def test_csv_is_exact_and_has_no_total() -> None:
    assert to_csv(alexnet_end()) == (
        "module,params,memory_mb,madd,flops,mem_rw_b\nfeatures.0,23296,0.74,140553600,70470400,1469696\n"
    )
    table = full_table()
    table.rows[3]["seconds_measured"] = 0.000123456789
    assert ",0.000123457," in to_csv(table)


def test_json_round_trips() -> None:
    table = full_table()
    saved = json.loads(json.dumps(table_to_json(table)))
    assert set(saved) == {"title", "convention", "columns", "rows", "total", "notes"}
    assert saved["rows"] == table.rows and saved["total"] == table.total
    assert saved["columns"][6] == {"name": "bytes_read", "unit": "B"}


def test_torchstat_summary_is_the_articles() -> None:
    for width in (None, 60):
        lines = to_text(alexnet_end(), width).splitlines()
        assert lines[-6] == "Total params: 57,044,810"
        assert set(lines[-5]) == {"-"}
        assert lines[-4:] == [
            "Total memory: 4.15MB",
            "Total MAdd: 1.42GMAdd",
            "Total Flops: 711.49MFlops",
            "Total MemR+W: 226.38MB",
        ]
    table = alexnet_end()
    table.total |= {"madd": AtLeast(1400), "flops": AtLeast(0), "mem_rw_b": 1023}
    assert to_text(table, None).endswith("Total MAdd: >=1.4KMAdd\nTotal Flops: ?Flops\nTotal MemR+W: 1023B\n")
    table.columns = tuple(column for column in table.columns if column.name != "memory_mb")
    assert "Total params" not in to_text(table, None)
    assert "Total params" not in to_text(full_table(), None)


def test_color_only_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "10")
    plain, colored = to_text(full_table(), 80), to_text(full_table(), 80, color=True)
    assert "\x1b" not in plain and "\x1b[" in colored
    stripped = re.sub(r"\x1b\[[\d;]*m", "", colored)
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()
    assert capsys.readouterr().out == ""


def test_table_without_rows() -> None:
    table = full_table(rows=[], free_rows=frozenset())
    assert body(to_text(table, 80))[-1][0] == "total"
    assert to_csv(table).count("\n") == 1
    assert "**total**" in to_markdown(table)


def test_a_csv_can_be_written_and_does_not_turn_text_around() -> None:
    text = to_csv(named(("\ud800", "a\u202eb", "a\u2028b")))
    assert text.encode("utf-8") and [line.split(",")[0] for line in text.splitlines()[1:]] == [
        "\\ud800", "a\\u202eb", "a\\u2028b",
    ]  # fmt: skip
