"""The tables of a report: which values stand in one, which may be compared, and how they are written."""

import csv

import pytest
from scoring import unscored

from benchmarks import cases, report, store, tables


def test_a_benchmark_that_the_papers_lack_has_a_table_of_its_own():
    average = {"all": {"psnr": 30.5, "cases": 2, "left_out": 0, "full": None}}
    result = {"benchmark": "Clips_2x", "average": average, "metrics": ["psnr"], "protocol": "paper"}
    (table,) = tables.make_tables({"Clips_2x-dis": result | {"other_scale": None, "cases_sha256": "1"}})
    assert table.title == "Clips_2x" and table.rows["dis"]["Clips_2x", "all", "psnr"].value == 30.5


def test_results_of_one_name_and_several_weights_are_not_one_method():
    one = {"average": {"s": {"psnr": 30.5, "cases": 2, "left_out": 0, "full": 2}}, "metrics": ["psnr"]}
    one |= {"protocol": "paper", "other_scale": None, "cases_sha256": "1"}
    results = {
        f"{benchmark}-{name}": one | {"benchmark": benchmark} | ({f"{kind}_sha256": sha256} if sha256 else {})
        for benchmark, changed in (("Vimeo90K", "1234567"), ("UCF101", "abcdefg"))
        for name, kind, sha256 in (
            ("IFRNet_S", "checkpoint", changed),
            ("IFRNet", "checkpoint", "1234567"),
            ("method", "code", changed),
            ("dis", "", None),
        )
    }
    (table,) = tables.make_tables(results)
    ours = {name: len(cells) for name, cells in table.rows.items() if "published" not in name}
    changed = {f"{name} {sha256}": 1 for name in ("IFRNet_S", "method") for sha256 in ("123456", "abcdef")}
    assert ours == {**changed, "IFRNet": 2, "dis": 2}


def test_names_of_files_mean_nothing_in_markdown_and_latex():
    columns = [("Clips_2x", "a|b", "psnr"), ("Clips_2x", "c", "psnr")]
    table = tables.Table("t", columns, {r"x^2_{a}|*~\$<1": {columns[0]: tables.Cell(1.0, None)}})
    assert tables.markdown([table]).splitlines()[2:5:2] == [
        r"| method | Clips_2x a\|b PSNR | Clips_2x c PSNR |",
        r"| x^2_{a}\|\*\~\\\$\<1 | 1.00‡ | - |",
    ]
    lines = tables.latex([table]).splitlines()
    name = r"x\textasciicircum{}2\_\{a\}\textbar{}*\textasciitilde{}\textbackslash{}\$\textless{}1"
    assert r"method & Clips\_2x a\textbar{}b PSNR & Clips\_2x c PSNR \\" in lines
    assert name + r" & 1.00$^\ddagger$ & - \\" in lines


def test_lower_is_better_for_errors_and_ties_are_all_bold():
    column = ("Middlebury_Other", "other", "ie")
    cells = {"a": 2.0, "b": 1.5, "c": 1.5, "other protocol": 1.0}
    rows = {name: {column: tables.Cell(value, tables.PAPER)} for name, value in cells.items()}
    rows["other protocol"][column] = tables.Cell(1.0, "uint8")
    assert tables.best(tables.Table("", [column], rows)) == {("b", column), ("c", column)}


def test_values_that_are_shown_alike_are_best_together():
    """Published ones have no more digits, and between the same network's in two modes the rest is rounding."""
    for metric, ours, theirs, other in (("psnr", 36.2041, 36.2, 36.19), ("ie", 1.84649, 1.846, 1.847)):
        column = "Vimeo90K", "test", metric
        values = {"ours": ours, "theirs": theirs, "other": other}
        rows = {name: {column: tables.Cell(value, "paper")} for name, value in values.items()}
        assert tables.best(tables.Table("", [column], rows)) == {("ours", column), ("theirs", column)}


def test_lpips_by_other_weights_is_not_comparable():
    weights = {"alexnet": {"net.pth": ["1"], "alex.pth": ["2"]}, "renamed": {"a.pth": ["2", "1"]}}
    weights["vgg"], results = {"a.pth": ["3"]}, {}
    for value, (name, hashes) in enumerate(weights.items()):
        scores = [store.Score("test", "a", {"psnr": [30.0], "lpips": [0.1 * (value + 1)]})]
        split = cases.Split("test", [cases.Case("a", None, None, ())], full=1)
        about = unscored(benchmark="UCF101", model=name, protocol="paper", metrics=["psnr", "lpips"])
        results[f"UCF101-{name}"] = about | {"lpips_weights": hashes} | store.summary("UCF101", name, [split], scores)
    (table,) = tables.make_tables(results)
    lpips, psnr = (("UCF101", "test", metric) for metric in ("lpips", "psnr"))
    of_lpips = {name: cells[lpips].footing for name, cells in table.rows.items() if name in weights}
    assert of_lpips["alexnet"] == of_lpips["renamed"] != of_lpips["vgg"]
    assert tables.PAPER not in of_lpips.values()  # which has none
    assert {name for name, column in tables.best(table) if column == lpips} == {"alexnet"}
    assert all(table.rows[name][psnr].footing == tables.PAPER for name in weights)


def test_what_a_frame_costs_is_a_table_by_device_and_size_beside_the_papers():
    one = {"model": "IFRNet_S", "mode": "eager", "precision": "fp32", "scale": 1, "frames": 1, "size": "1280x720"}
    one |= {"parameters": 2_803_610, "macs": 100_123_000_000, "seconds": 0.0456}
    fast = one | {"mode": "fast", "precision": "bf16", "size": "448x256", "seconds": 0.00123, "macs": 13 * 10**9}
    mine = one | {"model": "mine", "code": "mine.py", "code_sha256": "1f", "parameters": 12_345, "seconds": 2.5}
    speeds = [
        {"device": "this CPU", "rows": [one, fast, fast | {"frames": 7, "seconds": 0.001}, mine]},
        {"device": "a GPU", "rows": [one | {"seconds": 0.0021, "scale": "multi"}, mine | {"frames": 7}]},
    ]
    (table,) = tables.make_costs(speeds)
    assert tables.markdown([table]).splitlines()[2:] == [
        "| method | parameters, M | 1280x720 MACs, T | V100 1280x720 ms | a GPU 1280x720 ms | this CPU 448x256 ms |"
        " this CPU 1280x720 ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| IFRNet_S, published | 2.80 | - | 19.0 | - | - | - |",
        "| IFRNet, published | 4.96 | - | 25.0 | - | - | - |",
        "| IFRNet_L, published | 19.70 | - | 79.0 | - | - | - |",
        "| IFRNet_S, eager, fp32 | 2.80 | 0.100 | - | - | - | 45.6 |",
        "| IFRNet_S, fast, bf16 | 2.80 | - | - | - | 1.2 | - |",
        "| IFRNet_S, fast, 8x, bf16 | 2.80 | - | - | - | 1.0 | - |",
        "| mine | 0.01 | 0.100 | - | - | - | 2500.0 |",
        "| IFRNet_S, eager, multi, fp32 | 2.80 | 0.100 | - | 2.1 | - | - |",
        "| mine, 8x | 0.01 | 0.100 | - | 2500.0 | - | - |",
    ]
    assert tables.make_costs([]) == tables.make_costs([{"device": "this CPU", "rows": []}]) == []
    assert '"IFRNet_S, published",V100,1280x720,milliseconds,19.0,True,False' in tables.comma_separated([table])


def test_costs_of_methods_whose_files_share_a_name_are_told_apart():
    one = {"model": "IFRNet_S", "mode": "eager", "precision": "fp32", "scale": 1, "frames": 1, "size": "448x256"}
    one |= {"parameters": 2_803_610, "macs": 13 * 10**9, "seconds": 0.1}
    others = [one | {"code": f"{k}.py", "code_sha256": 8 * f"{k}f", "parameters": k * 10**6} for k in (1, 2)]
    alone = others[0] | {"model": "mine"}
    (table,) = tables.make_costs([{"device": "this CPU", "rows": [one, *others, alone, alone | {"frames": 7}]}])
    millions = {name: cells["", "", "parameters"].value for name, cells in list(table.rows.items())[3:]}
    assert millions == {
        "IFRNet_S, eager, fp32": 2.80361,
        "IFRNet_S 1f1f1f": 1,
        "IFRNet_S 2f2f2f": 2,
        "mine": 1,
        "mine, 8x": 1,
    }


@pytest.mark.parametrize("first", [0.1, 0.2])
def test_of_several_measurements_the_table_has_the_one_that_the_plots_have(first):
    """In whatever order their files are read."""
    one = {"model": "IFRNet_S", "mode": "eager", "precision": "fp32", "scale": 1, "frames": 1, "size": "1280x720"}
    rows = [one | {"parameters": 2_803_610, "macs": 10**11, "seconds": seconds} for seconds in (first, 0.3 - first)]
    (table,) = tables.make_costs([{"device": "this CPU", "rows": [row]} for row in rows])
    shown = table.rows["IFRNet_S, eager, fp32"]["this CPU", "1280x720", "milliseconds"].value
    assert shown == 1000 * report._seconds(rows, one) == pytest.approx(100)


def test_times_of_other_devices_than_the_papers_are_not_comparable_with_its():
    one = {"model": "IFRNet_S", "mode": "eager", "precision": "fp32", "scale": 1, "frames": 1, "size": "1280x720"}
    one |= {"parameters": 2_803_610, "macs": 10**11, "seconds": 0.1}
    lines = csv.DictReader(tables.comma_separated(tables.make_costs([{"device": "a GPU", "rows": [one]}])).splitlines())
    comparable = {(line["benchmark"], line["metric"]): line["comparable with the paper"] for line in lines}
    assert comparable == {
        ("", "parameters"): "True",
        ("V100", "milliseconds"): "True",
        ("", "macs"): "True",
        ("a GPU", "milliseconds"): "False",
    }
