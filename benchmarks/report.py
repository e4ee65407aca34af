"""Turn the results of benchmarks into tables, plots and one page.

    python benchmarks/report.py
    python benchmarks/report.py results/*.json --out report

Writes tables.md, tables.csv, tables.tex (published rows beside ours, the best in bold), plots as SVG, and report.html:
one self-contained file with the tables, the plots and, for the worst and the median cases, a slider between prediction
and truth, the error and the flow. What a frame costs comes from speed_parameters.py's results among those given.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import store
from benchmarks.page import page
from benchmarks.plots import Series, plot
from benchmarks.published import PARAMETERS, SCORES, SECONDS_720P
from benchmarks.tables import PAPER, comma_separated, footing, labels, latex, make_costs, make_tables, markdown
from utils import cli, io


def read_results(paths: list[Path]) -> tuple[dict[str, dict], list[dict]]:
    """The results of benchmarks by their file's name, and those of speed_parameters.py."""
    files = [file for path in paths for file in ([path] if path.suffix == ".json" else sorted(path.glob("[!.]*.json")))]
    files = list({path.resolve(): path for path in files}.values())  # a file may be named as well as its folder
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: no results here; run a benchmark, or name its JSON files")
    scores, speeds = {}, []
    for path in files:
        result = store.read(path)
        if result["benchmark"] == store.SPEED:
            speeds.append(result)
        elif result["benchmark"] == store.THROUGHPUT:
            continue
        elif path.stem in scores:
            raise ValueError(f"{path}: a result of this name is in {scores[path.stem]['folder']} too; rename one")
        else:
            scores[path.stem] = result | {"folder": path.parent}
    if not scores:
        raise ValueError(f"{', '.join(map(str, paths))}: only times here, no scores; run a benchmark first")
    return scores, speeds


def make_plots(results: dict[str, dict], speeds: list[dict]) -> dict[str, str]:
    """Name -> SVG. For each split PSNR of every case, over t if there are several, against size and against speed."""
    plots, names = {}, labels(results)
    for benchmark, split in dict.fromkeys((r["benchmark"], split) for r in results.values() for split in r["average"]):
        ours = {
            names[stem]: result
            for stem, result in results.items()
            if result["benchmark"] == benchmark and "psnr" in result["average"].get(split, {})
        }
        title, name = f"{benchmark}, {split}", f"{benchmark}-{split}"
        lines = [_sorted(of, result, split) for of, result in ours.items()]
        plots[f"{name}-sorted"] = plot(f"{title}: every case, sorted", "cases, %", "PSNR, dB", lines)
        if any(len(sample["times"]) > 1 for result in ours.values() for sample in result["samples"][split]):
            lines = [_over_time(of, result, split) for of, result in ours.items()]
            plots[f"{name}-times"] = plot(f"{title}: PSNR over time", "t", "PSNR, dB", lines)

        psnr = {of: result["average"][split]["psnr"] for of, result in ours.items()}
        # Published points stand beside ours only where the cases are the same.
        comparable = all(footing(result, split) == PAPER for result in ours.values())
        known = {n: v["psnr"] for n, v in SCORES.get(benchmark, {}).get(split, {}).items()} if comparable else {}
        sizes = {of: count / 1e6 for of, result in ours.items() if (count := _parameters(speeds, result))}
        points = [
            _points("published", {n: p / 1e6 for n, p in PARAMETERS.items()}, known),
            _points("ours", sizes, psnr),
        ]
        plots[f"{name}-parameters"] = plot(f"{title}: size", "parameters, million", "PSNR, dB", points, log_x=True)
        points = [_points("published, V100", SECONDS_720P, known)]
        for device in dict.fromkeys(speed["device"] for speed in speeds):
            rows = [row for speed in speeds if speed["device"] == device for row in speed["rows"]]
            seconds = {of: _seconds(rows, result) for of, result in ours.items()}
            points.append(_points(device, seconds, psnr))
        plots[f"{name}-time"] = plot(f"{title}: time", "s per frame of 1280x720", "PSNR, dB", points, log_x=True)
    return {name: svg for name, svg in plots.items() if svg}


def _points(name: str, cost: dict[str, float | None], psnr: dict[str, float]) -> Series:
    return Series(name, [(cost[of], psnr[of], of) for of in cost if cost[of] and of in psnr])


def _sorted(name: str, result: dict, split: str) -> Series:
    means = sorted((np.mean(s["psnr"]), s["name"]) for s in result["samples"][split] if not s["broken"])
    share = 100 / max(len(means) - 1, 1)
    return Series(name, [(k * share, value, case) for k, (value, case) in enumerate(means)], line=True)


def _over_time(name: str, result: dict, split: str) -> Series:
    values: dict[float, list[float]] = {}
    for sample in result["samples"][split]:
        for t, value in zip(sample["times"], sample.get("psnr", ())):
            values.setdefault(t, []).append(value)
    return Series(name, [(t, float(np.mean(v)), "mean") for t, v in sorted(values.items())], line=True)


def _parameters(speeds: list[dict], result: dict) -> int | None:
    """The parameters of a result's model; of a method from elsewhere those that were counted when it was timed."""
    counted = (row["parameters"] for speed in speeds for row in speed["rows"] if _same(row, result))
    return result.get("parameters") or next(counted, None)


def _same(row: dict, result: dict) -> bool:
    """Whether both are of one model. A method from elsewhere is its code, whatever the name of its file."""
    return all(row.get(name) == result.get(name) for name in ("model", "code_sha256"))


def _seconds(rows: list[dict], result: dict) -> float | None:
    """Seconds for one frame of 1280x720 with this model, precision and scale, in the fastest mode that was timed; twice
    that where the protocol predicts every frame twice."""
    wanted = {"size": "1280x720", "frames": 1, "scale": result.get("scale", 1), "precision": result["precision"]}
    found = [row["seconds"] for row in rows if _same(row, result) and wanted.items() <= row.items()]
    return min(found) * (1 + bool(result.get("turned"))) if found else None


def main(args: argparse.Namespace) -> None:
    results, speeds = read_results(args.results)
    tables, plots = make_tables(results) + make_costs(speeds), make_plots(results, speeds)
    texts_by_file = {
        "tables.md": markdown(tables),
        "tables.csv": comma_separated(tables),
        "tables.tex": latex(tables),
        "report.html": page(tables, plots, results, speeds),
        **{f"{name}.svg": svg for name, svg in plots.items()},
    }
    for name, text in texts_by_file.items():
        io.write_bytes(args.out / name, text.encode(errors="backslashreplace"))  # names of any bytes
    print(markdown(tables))
    print(f"wrote {args.out}: tables.md, tables.csv, tables.tex, {len(plots)} plots; open {args.out / 'report.html'}")


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    about = "JSON files or folders of them (default: the repository's results/)"
    options.add_argument("results", nargs="*", type=Path, default=[store.RESULTS], help=about)
    about = "folder to write to (default: %(default)s)"
    options.add_argument("--out", type=Path, default=store.RESULTS / "report", help=about)
    return options


if __name__ == "__main__":
    cli.run(main, parser())
