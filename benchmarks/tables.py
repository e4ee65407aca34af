"""The tables of the paper, published rows beside ours, as Markdown, CSV and LaTeX; the best of a column in bold."""

import csv
import io
from collections import Counter
from typing import NamedTuple

from benchmarks import store
from benchmarks.published import PARAMETERS, PROTOCOLS, SCORES, SECONDS_720P
from models.baselines import BASELINES

# Benchmarks that share a table, as in the paper and later ones; any other has a table of its own.
TABLES = {
    "2x": ("Vimeo90K", "UCF101", "SNU_FILM"),
    "2x, Middlebury Other": ("Middlebury_Other",),
    "8x": ("GoPro", "Adobe240"),
    "High resolution": ("Xiph", "X_TEST"),
}
COSTS = {"parameters": "parameters, M", "macs": "MACs, T", "milliseconds": "ms"}
SIZE, DEVICE = "1280x720", "V100"  # of the paper's multiply-accumulates and times
PAPER = "paper"
NOTE = (
    "† by another protocol than the paper's, on other cases, or LPIPS: comparable only with numbers of the same kind. "
    "‡ by an unknown protocol: not comparable"
)

# Escapes for characters with a meaning in Markdown (where _ within a word has none) and in LaTeX.
MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\|*`<[~$&"})
LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)


class Cell(NamedTuple):
    """footing: values with the same footing may be compared. A protocol's name where all cases were scored by it, PAPER
    for the paper's; None: not comparable with any other."""

    value: float
    footing: str | None


class Table(NamedTuple):
    """columns: (benchmark, split, metric), or of costs (device or "", size or "", one of COSTS). rows: label -> column
    -> cell."""

    title: str
    columns: list[tuple[str, str, str]]
    rows: dict[str, dict[tuple[str, str, str], Cell]]


def labels(results: dict[str, dict]) -> dict[str, str]:
    """The names of our rows: their files' names without the benchmark's. Where several weights or methods share a name,
    as after a file was replaced between two benchmarks, the first digits of their hashes follow it."""
    named = {
        stem: (
            stem.removeprefix(result["benchmark"] + "-"),
            result.get("checkpoint_sha256", result.get("code_sha256", "")),
        )
        for stem, result in results.items()
    }
    count = Counter(name for name, _ in set(named.values()))
    return {stem: f"{name} {sha256[:6]}" if count[name] > 1 else name for stem, (name, sha256) in named.items()}


def make_tables(results: dict[str, dict]) -> list[Table]:
    """One table for each group of benchmarks with a result."""
    tables, names = [], labels(results)
    known = {name for benchmarks in TABLES.values() for name in benchmarks}
    others = {r["benchmark"]: (r["benchmark"],) for r in results.values() if r["benchmark"] not in known}
    for title, benchmarks in (TABLES | others).items():
        ours = {stem: result for stem, result in results.items() if result["benchmark"] in benchmarks}
        columns, rows = [], {}
        for benchmark in benchmarks:
            of_it = [result for result in ours.values() if result["benchmark"] == benchmark]
            metrics = list(dict.fromkeys(metric for result in of_it for metric in result["metrics"]))
            splits = list(dict.fromkeys(split for result in of_it for split in result["average"]))
            columns += [(benchmark, split, metric) for split in splits for metric in metrics]
        for column in columns:
            benchmark, split, metric = column
            for method, values in SCORES.get(benchmark, {}).get(split, {}).items():
                if metric in values:
                    name = f"{method}, {'measured before' if method in BASELINES else 'published'}"
                    rows.setdefault(name, {})[column] = Cell(values[metric], PROTOCOLS.get(method))
            for stem, result in ours.items():
                value = result["average"].get(split, {}).get(metric) if result["benchmark"] == benchmark else None
                if value is not None:
                    rows.setdefault(names[stem], {})[column] = Cell(value, footing(result, split, metric))
        if ours:
            tables.append(Table(title, columns, rows))
    return tables


def make_costs(speeds: list[dict]) -> list[Table]:
    """The table of what a frame costs, if any was measured: by every way of every model, on every device, at every
    size. Of several measurements of the same, the fastest, as in the plots. Methods whose files share a name, or have
    a network's, are told apart as in `labels`."""
    rows: dict[str, dict[tuple[str, str, str], Cell]] = {}
    named = {(row["model"], row.get("code_sha256")) for speed in speeds for row in speed["rows"]}
    codes = Counter(name for name, _ in named)

    def put(label: str, device: str, size: str, cost: str, value: float) -> None:
        cells, column, cell = rows.setdefault(label, {}), (device, size, cost), Cell(value, PAPER)
        cells[column] = min(cell, cells.get(column, cell))

    for name, count in PARAMETERS.items():
        put(f"{name}, published", "", "", "parameters", count / 1e6)
        put(f"{name}, published", DEVICE, SIZE, "milliseconds", 1000 * SECONDS_720P[name])
    for speed in speeds:
        for row in speed["rows"]:
            label = _way(row, codes[row["model"]] > 1)
            put(label, "", "", "parameters", row["parameters"] / 1e6)
            if row["size"] == SIZE:
                put(label, "", SIZE, "macs", row["macs"] / 1e12)
            put(label, speed["device"], row["size"], "milliseconds", 1000 * row["seconds"])
    columns = sorted({column for cells in rows.values() for column in cells}, key=_order)
    return [Table("Cost of a frame", columns, rows)] if any(speed["rows"] for speed in speeds) else []


def _way(row: dict, ambiguous: bool) -> str:
    if "code" in row:  # mode and precision are up to it
        name = f"{row['model']} {row['code_sha256'][:6]}" if ambiguous else row["model"]
        return name + (f", {row['frames'] + 1}x" if row["frames"] > 1 else "")
    return f"{row['model']}, {store.mode(row)}, {row['precision']}"


def _order(column: tuple[str, str, str]) -> tuple:
    device, size, cost = column
    return list(COSTS).index(cost), device, len(size), size


def footing(result: dict, split: str, metric: str = "psnr") -> str:
    """What a value may be compared with, see Cell."""
    average, words = result["average"][split], [result["protocol"]]
    if result["other_scale"] or average["full"] != average["cases"]:
        # Where nothing is published, the scale is the model's own choice.
        words += [average["full"] and result["other_scale"], result["cases_sha256"], average["left_out"]]
    if metric == "lpips":
        words += ["LPIPS", *store.lpips_hashes(result)]
    return " ".join(map(str, words))


def best(table: Table) -> set[tuple[str, tuple]]:
    """(label, column) of the best values of each column of scores among comparable ones, where there are at least two.
    Values that are shown alike are equal: published ones have no more digits."""
    winners = set()
    for column in table.columns:
        if column[2] in COSTS:
            continue
        by_footing: dict[str, list[tuple[float, str]]] = {}
        for name, cells in table.rows.items():
            if column in cells and cells[column].footing:
                value = float(store.shown(column[2], cells[column].value))
                value = value if column[2] in store.HIGHER_IS_BETTER else -value
                by_footing.setdefault(cells[column].footing, []).append((value, name))
        for values in by_footing.values():
            if len(values) > 1:
                winners |= {(name, column) for value, name in values if value == max(values)[0]}
    return winners


def texts(table: Table, bold: str) -> list[list[str]]:
    """The rows as text. bold: a format for the best."""
    winners, lines = best(table), []
    for name, cells in table.rows.items():
        line = [name]
        for column in table.columns:
            if column not in cells:
                line.append("-")
                continue
            text = store.shown(column[2], cells[column].value)
            text = bold.format(text) if (name, column) in winners else text
            line.append(text + mark(cells[column]))
        lines.append(line)
    return lines


def mark(cell: Cell) -> str:
    """The mark of a value that is not by the paper's protocol on all cases, see NOTE."""
    return "" if cell.footing == PAPER else "†" if cell.footing else "‡"


def heads(table: Table) -> list[str]:
    """The names of the columns: benchmark, split where there are several, metric."""
    several = {b for b, split, _ in table.columns if len({s for x, s, _ in table.columns if x == b}) > 1}
    units = store.UNITS | COSTS
    return ["method"] + [
        " ".join(filter(None, [b, s if b in several or m in COSTS else "", units[m]])) for b, s, m in table.columns
    ]


def _escaped(table: Table, bold: str, special: dict[int, str]) -> list[list[str]]:
    """Heads and rows as text, with special characters in names escaped. special: for str.translate."""
    lines = ([name.translate(special), *values] for name, *values in texts(table, bold))
    return [[name.translate(special) for name in heads(table)], *lines]


def has_note(table: Table) -> bool:
    return any(mark(cell) for cells in table.rows.values() for cell in cells.values())


def markdown(tables: list[Table]) -> str:
    parts = []
    for table in tables:
        head, *rows = _escaped(table, "**{}**", MARKDOWN)
        lines = [head, ["---"] + ["---:"] * len(table.columns), *rows]
        parts.append(f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        if has_note(table):
            parts.append(NOTE + ".\n")
    return "\n".join(parts)


def comma_separated(tables: list[Table]) -> str:
    """One line per number: the long form, which spreadsheets and programs turn into any table."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "benchmark", "split", "metric", "value", "comparable with the paper", "best"])
    for table in tables:
        winners = best(table)
        for name, cells in table.rows.items():
            for column in table.columns:
                if column in cells:
                    value, footing = cells[column]
                    comparable = footing == PAPER and (column[2] != "milliseconds" or column[0] == DEVICE)
                    writer.writerow([name, *column, value, comparable, (name, column) in winners])
    return out.getvalue()


def latex(tables: list[Table]) -> str:
    parts = []
    for table in tables:
        rows = [" & ".join(line) + r" \\" for line in _escaped(table, r"\textbf{{{}}}", LATEX)]
        body = "\n".join([r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"])
        body = body.replace("†", r"$^\dagger$").replace("‡", r"$^\ddagger$")
        note = f"\n% {NOTE.replace('†', 'dagger:').replace('‡', 'ddagger:')}" if has_note(table) else ""
        columns = "l" + "r" * len(table.columns)
        parts.append(f"% {table.title}{note}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n")
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)
