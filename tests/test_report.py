"""The report: its tables against the results they are made of, its plots' geometry, its page in a real browser."""

import base64
import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET

import browser
import numpy as np
import pytest
from PIL import Image
from scoring import frame, result, score, unscored

from benchmarks import GoPro, Vimeo90K, plots, published, report, store, tables
from utils import io


@pytest.fixture
def scored(tmp_path, typed, weights):
    data, out = tmp_path / "vimeo", tmp_path / "results"
    names = [f"00001/{k:04d}" for k in range(1, 6)]
    for k, name in enumerate(names):
        for number in range(3):
            # The later the case, the nearer its middle frame is to the last.
            first, last = frame(2 * k), frame(2 * k + 1)
            middle = [first, (first.astype(int) * (6 - k) + last * (4 + k)) // 10, last][number].astype(np.uint8)
            io.write_image(data / "sequences" / name / f"im{number + 1}.png", middle)
    (data / "tri_testlist.txt").write_text("\n".join(names))
    done = score(typed, Vimeo90K.BENCHMARK, data, out, "--model_name", "repeat", "average", "dis", "IFRNet_S",
                 "--checkpoint", weights)  # fmt: skip
    assert done.status == 0, done.err
    return out


def make(typed, *words):
    return typed(report.main, report.parser(), *words)


def complete(path, **values):
    """Make a result one on all published cases, with other averages."""
    content = json.loads(path.read_text())
    for average in content["average"].values():
        average |= values | {"cases": average["full"]}
    path.write_text(json.dumps(content))


def rest(scored):
    """The rows of this project's results, without dis."""
    return [path.stem.removeprefix("Vimeo90K-") for path in scored.glob("*.json") if "dis" not in path.stem]


def test_a_result_that_a_kill_left_half_written_is_none(scored, tmp_path, typed):
    (scored / ".Vimeo90K-average.here.7.json").write_text("{")
    shutil.copy(scored / "Vimeo90K-average.json", scored / ".Vimeo90K-average.here.8.json")
    assert make(typed, scored, "--out", tmp_path / "report").status == 0
    assert (tmp_path / "report" / "tables.md").read_text().count("average") == 1


def test_tables_hold_the_averages_beside_the_published_rows_the_best_in_bold(scored, tmp_path, typed):
    complete(scored / "Vimeo90K-dis.json", psnr=36.6412, ssim=0.97)
    done = make(typed, scored, "--out", tmp_path / "report")
    assert done.status == 0, done.err
    lines = (tmp_path / "report" / "tables.md").read_text().splitlines()
    assert "| method | Vimeo90K PSNR | Vimeo90K SSIM |" in lines
    # dis counts as complete here and wins by PSNR against all published ones; SSIM stays with IFRNet_L.
    assert "| dis | **36.64** | 0.9700 |" in lines and "| IFRNet_L, published | 36.20 | **0.9808** |" in lines
    # Rows by another protocol, or by an unknown one, do not compete with these.
    assert "| EMA-VFI(TTA), published | 36.64† | - |" in lines and "| VFIMamba(TTA), published | 36.64‡ | - |" in lines
    # The rest are of five cases: marked, and compared among themselves.
    psnr, ssim = (
        {name: result(scored, f"Vimeo90K-{name}")["average"]["test"][metric] for name in rest(scored)}
        for metric in ("psnr", "ssim")
    )
    for name in psnr:
        cells = [f"{psnr[name]:.2f}", f"{ssim[name]:.4f}"]
        for k, values in enumerate((psnr, ssim)):
            cells[k] = (f"**{cells[k]}**" if values[name] == max(values.values()) else cells[k]) + "†"
        assert f"| {name} | {cells[0]} | {cells[1]} |" in lines
    assert tables.NOTE + "." in lines and "\n".join(lines).strip() in done.out


def test_the_same_numbers_are_in_csv_and_latex(scored, tmp_path, typed):
    make(typed, scored, "--out", tmp_path)
    rows = list(csv.DictReader((tmp_path / "tables.csv").open()))
    ours = {(row["method"], row["metric"]): row for row in rows if not row["method"].endswith("published")}
    average = result(scored, "Vimeo90K-average")["average"]["test"]
    assert float(ours["average", "psnr"]["value"]) == average["psnr"]
    assert ours["average", "psnr"]["comparable with the paper"] == "False"
    assert {row["split"] for row in rows} == {"test"} and len(rows) == 16 + 3 + 4 * 2
    text = (tmp_path / "tables.tex").read_text()
    assert re.search(rf"^average & (\\textbf{{)?{average['psnr']:.2f}}}?\$\^\\dagger\$ & ", text, re.M)
    assert r"IFRNet\_S, published & 35.59 & 0.9786 \\" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows} == {2} and r"\begin{tabular}{lrr}" in text


def test_another_protocol_scale_or_part_of_the_cases_is_not_comparable(scored):
    content = result(scored, "Vimeo90K-average")
    content["average"]["test"]["cases"] = 3782
    assert tables.footing(content, "test") == tables.PAPER
    # The whole set by another protocol compares with what is published by that protocol.
    assert tables.footing(content | {"protocol": "ema"}, "test") == published.PROTOCOLS["EMA-VFI(TTA)"]
    others = [content | {"protocol": "uint8"}, content | {"other_scale": 0.5}, result(scored, "Vimeo90K-average")]
    footings = {tables.footing(other, "test") for other in others}
    assert len(footings) == 3 and tables.PAPER not in footings


# Plots


def circles(svg):
    root = ET.fromstring(svg)
    found = [c for c in root.iter("{http://www.w3.org/2000/svg}circle") if len(c)]
    return {c[0].text: (float(c.get("cx")), float(c.get("cy"))) for c in found}


def test_a_plot_puts_points_where_their_values_are():
    series = plots.Series("s", [(1, 30, "a"), (10, 32, "b"), (100, 34, "c"), (5, float("inf"), "left out")])
    places = circles(plots.plot("t", "x", "y", [series], log_x=True))
    (ax, ay), (bx, by), (cx, cy) = (places[name] for name in ("s, a: 1, 30", "s, b: 10, 32", "s, c: 100, 34"))
    assert len(places) == 3
    assert bx == pytest.approx((ax + cx) / 2, abs=0.1) and by == pytest.approx((ay + cy) / 2, abs=0.1)
    assert ax < cx and ay > cy  # y grows upwards in a plot, downwards in SVG
    linear = circles(plots.plot("t", "x", "y", [series]))
    assert linear["s, b: 10, 32"][0] - linear["s, a: 1, 30"][0] < 0.1 * (cx - ax)


@pytest.mark.parametrize("limits", [(0, 1), (-3, 17), (35.1, 35.4), (0.001, 0.0013), (1000, 90000)])
def test_ticks_are_round_and_within_the_range(limits):
    found = plots.ticks(*limits)
    assert 3 <= len(found) <= 9 and limits[0] <= found[0] and found[-1] <= limits[1] + 1e-9
    assert len({f"{b - a:.6g}" for a, b in zip(found, found[1:])}) == 1 and max(len(f"{x:g}") for x in found) <= 7


def texts(svg):
    """(what is written, its distance from the top)."""
    return [(each.text, float(each.get("y"))) for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_narrow_range_has_ticks_that_differ():
    """Neither 10 nor 20 is between 12.1 and 12.9; the values of y agree in six digits."""
    points = [(12.1, 35.123456, "a"), (12.9, 35.123461, "b")]
    written = [text for text, _ in texts(plots.plot("t", "x", "y", [plots.Series("s", points, line=True)], log_x=True))]
    assert {"12.2", "12.4", "12.6", "12.8"} <= set(written)
    of_y = [text for text in written if text.startswith("35.1234")]
    assert len(of_y) == len(set(of_y)) >= 3


def test_every_series_is_named_within_the_picture():
    svg = plots.plot("t", "x", "y", [plots.Series(f"s{k}", [(k, k, "")], line=True) for k in range(40)])
    places, height = dict(texts(svg)), float(ET.fromstring(svg).get("viewBox").split()[3])
    assert {f"s{k}" for k in range(40)} <= set(places) and max(places.values()) < height


def test_names_cannot_break_a_picture_and_nothing_to_draw_is_no_picture():
    assert "a < b" in ET.fromstring(plots.plot('<&"', "x", "y", [plots.Series("a < b", [(1, 1, "<")])])).itertext()
    assert plots.plot("t", "x", "y", [plots.Series("empty", [])]) == ""


def test_plots_of_cases_times_size_and_speed(scored, tmp_path, typed):
    root = tmp_path / "GOPRO"
    for video in GoPro.TEST_VIDEOS:
        for k in range(9):
            path = root / video / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if video == GoPro.TEST_VIDEOS[0]:
                io.write_image(path, frame(k % 3, 512, 512))
            else:
                path.symlink_to(root / GoPro.TEST_VIDEOS[0] / f"{k}.png")
    assert score(typed, GoPro.BENCHMARK, root, scored, "--model_name", "average", "--limit", 1).status == 0
    rows = [
        {
            "model": "IFRNet_S",
            "precision": "fp32",
            "size": size,
            "mode": mode,
            "seconds": seconds,
            "frames": 1,
            "scale": 1,
            "ratio": None,
            "parameters": 2_803_610,
            "macs": 10**11,
        }
        for size, mode, seconds in (("1280x720", "eager", 0.5), ("1280x720", "fast", 0.2), ("448x256", "eager", 0.1))
    ]
    for name, of_it in (("speed", rows[:2]), ("speed-small", rows[2:])):
        about = {"benchmark": store.SPEED, "device": "this GPU", "versions": {"torch": "2.6"}, "rows": of_it}
        about |= {"command": f"python {name}.py <a size>"}
        (scored / f"{name}.json").write_text(json.dumps(about))
    make(typed, scored, "--out", tmp_path / "report")
    times = circles((tmp_path / "report/GoPro-8x-times.svg").read_text())
    psnr = result(scored, "GoPro-average-first1")["samples"]["8x"][0]["psnr"]
    assert sorted(times) == sorted(f"average-first1, mean: {k / 8:.4g}, {psnr[k - 1]:.4g}" for k in range(1, 8))
    ordered = circles((tmp_path / "report/Vimeo90K-test-sorted.svg").read_text())
    heights = [place for name, place in sorted(ordered.items(), key=lambda item: item[1]) if name.startswith("dis, ")]
    assert len(heights) == 5 and heights == sorted(heights, key=lambda place: -place[1])
    (of_time,) = circles((tmp_path / "report/Vimeo90K-test-time.svg").read_text())
    assert of_time.startswith("this GPU, IFRNet_S-formula") and ": 0.2, " in of_time  # the fastest way
    (size,) = circles((tmp_path / "report/Vimeo90K-test-parameters.svg").read_text())
    assert ": 2.804, " in size
    assert "| IFRNet_S, fast, fp32 | 2.80 | 0.100 | - | - | 200.0 |" in (tmp_path / "report/tables.md").read_text()
    page = (tmp_path / "report/report.html").read_text()
    for name in ("speed", "speed-small"):
        origin = f"this GPU, torch 2.6<br><code>python {name}.py &lt;a size&gt;</code>"
        assert f"<p><b>speed_parameters</b>: {origin}" in page


def test_times_of_one_device_are_one_series_whatever_files_they_are_in():
    sample = {"name": "a", "times": [0.5], "broken": None, "psnr": [30.0]}
    scores = {"benchmark": "Mine", "protocol": "paper", "precision": "fp32", "samples": {"test": [sample]}}
    scores |= {"other_scale": None, "cases_sha256": "", "average": {"test": {"psnr": 30, "cases": 1, "full": 1}}}
    row = {"size": "1280x720", "frames": 1, "scale": 1, "precision": "fp32", "parameters": 1, "seconds": 0.5}
    names = ("IFRNet_S", "IFRNet")
    results = {f"Mine-{name}": scores | {"model": name} for name in names}
    speeds = [{"device": "this GPU", "rows": [row | {"model": name}]} for name in names]
    assert report.make_plots(results, speeds)["Mine-test-time"].count(">this GPU</text>") == 1


def test_curves_run_over_all_cases_and_are_means_over_them():
    samples = [
        {"name": "a", "broken": None, "times": [0.25, 0.75], "psnr": [30.0, 34.0]},
        {"name": "b", "broken": "cut short", "times": [0.25, 0.75]},
        {"name": "c", "broken": None, "times": [0.25, 0.75], "psnr": [20.0, 22.0]},
        {"name": "d", "broken": None, "times": [0.25, 0.75], "psnr": [25.0, 28.0]},
    ]
    one = {"samples": {"test": samples}}
    assert report._sorted("x", one, "test").points == [(0, 21.0, "c"), (50, 26.5, "d"), (100, 32.0, "a")]
    assert report._over_time("x", one, "test").points == [(0.25, 25.0, "mean"), (0.75, 28.0, "mean")]


def test_times_of_training_are_passed_over(tmp_path):
    store.write(tmp_path / "Xiph-IFRNet.json", unscored())
    store.write(tmp_path / "training.json", {"benchmark": store.THROUGHPUT, "device": "this GPU"})
    scores, speeds = report.read_results([tmp_path])
    assert list(scores) == ["Xiph-IFRNet"] and speeds == []


def test_a_time_at_another_scale_is_not_told_as_that_of_scale_1():
    rows = [
        {"model": "IFRNet_S", "precision": "fp32", "size": "1280x720", "mode": "eager", "seconds": 0.5, "frames": 1}
    ]
    rows = [rows[0] | {"scale": 1}, rows[0] | {"scale": "multi", "seconds": 0.7}]
    rows.append(rows[0] | {"frames": 8, "seconds": 0.1})  # of each of eight, which share their features
    for scale, seconds in ((1.0, 0.5), (0.5, None), ("multi", 0.7)):
        one = {"model": "IFRNet_S", "precision": "fp32", "scale": scale}
        assert report._seconds(rows, one) == seconds
    assert report._seconds(rows, one | {"turned": True}) == 1.4, "the network is called twice a frame"
    method = one | {"code": "IFRNet_S.py", "code_sha256": "1f"}
    assert report._seconds(rows, method) is None, "it only has the name"
    rows.append(rows[0] | {"scale": "multi", "code": "elsewhere/IFRNet_S.py", "code_sha256": "1f", "seconds": 0.3})
    assert report._seconds(rows, method) == 0.3 and report._seconds(rows, one) == 0.7


def test_a_methods_parameters_are_those_counted_when_it_was_timed():
    row = {"model": "mine", "code": "mine.py", "code_sha256": "1f", "parameters": 12_345}
    speeds = [{"rows": [{"model": "mine", "parameters": 1}, row]}]
    method = {"model": "mine", "code": "elsewhere/mine.py", "code_sha256": "1f"}
    assert report._parameters(speeds, method) == 12_345 and report._parameters([], method) is None
    assert report._parameters(speeds, method | {"code_sha256": "2f"}) is None, "other code of this name"
    assert report._parameters(speeds, {"model": "average"}) is None


# The page


def test_the_page_needs_no_other_file(scored, tmp_path, typed):
    make(typed, scored, "--out", tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]{0,40})', text) + re.findall(r"url\(([^)]{0,40})", text)
    assert addresses and all(address.startswith("data:image/webp;base64,") for address in addresses)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", text)


def test_the_worst_and_the_median_cases_are_shown(scored):
    content = result(scored, "Vimeo90K-average")
    ranked = sorted((sample["psnr"][0], sample["name"]) for sample in content["samples"]["test"])
    shown = {case["name"]: case for case in content["shown"]}
    assert [(case["name"], case["why"]) for case in content["shown"]] == [
        (ranked[0][1], "worst"), (ranked[1][1], "worst"), (ranked[2][1], "median")
    ]  # fmt: skip
    case = shown[ranked[0][1]]
    prediction, target = (io.read_image(scored / case[kind]) / 255 for kind in ("prediction", "target"))
    assert -10 * np.log10(np.mean((prediction - target) ** 2)) == pytest.approx(case["psnr"], abs=0.05)
    assert case["flow"] is None
    assert all((scored / case["flow"]).is_file() for case in result(scored, "Vimeo90K-dis")["shown"])


def test_pictures_that_were_left_behind_are_named_in_the_page(scored, tmp_path, typed):
    moved = tmp_path / "moved"
    moved.mkdir()
    (scored / "Vimeo90K-dis.json").rename(moved / "Vimeo90K-dis.json")
    assert make(typed, moved, "--out", tmp_path / "report").status == 0
    text = (tmp_path / "report" / "report.html").read_text()
    assert text.count("Its pictures are not beside the result") == 3 and "_prediction.png" in text


def test_pictures_of_several_sizes_are_named_in_the_page(scored, tmp_path, typed):
    (case, *_) = result(scored, "Vimeo90K-dis")["shown"]
    io.write_image(scored / case["target"], frame(0, 48, 60))
    words = scored, scored / "Vimeo90K-dis.json", "--out", tmp_path / "report"  # one of them twice
    assert make(typed, *words).status == 0
    assert "_target.png: 60x48, but " in (tmp_path / "report" / "report.html").read_text()


BOLD = ["36.20", "0.9808"]  # of the published rows: IFRNet_L


@pytest.mark.skipif(not browser.find(), reason="there is no Chromium here")
def test_the_page_works_in_a_browser(scored, tmp_path, typed):
    make(typed, scored, "--out", tmp_path / "report")
    with browser.Browser(tmp_path / "profile") as page:
        page.open(tmp_path / "report" / "report.html")
        assert page.run("document.querySelectorAll('.case').length") == 4 * 3
        loaded = "[...document.images].every(image => image.complete && image.naturalWidth == 64)"
        assert page.run(loaded) is True
        assert page.run("[...document.querySelectorAll('td b')].map(b => b.textContent)")[:2] == BOLD
        assert page.run("document.querySelectorAll('.plot svg circle title').length") >= 20
        slider = "document.querySelector('.case input')"
        page.run(f"{slider}.scrollIntoView({{block: 'center'}})")
        box = page.run(f"(({{x, y, width, height}}) => [x, y, width, height])({slider}.getBoundingClientRect())")
        visible = "getComputedStyle(document.querySelector('.case .top')).clipPath"
        assert page.run(visible) == "inset(0px 50% 0px 0px)"
        pictures = {}
        for place, share in ((0.02, 0), (0.98, 100)):
            page.click(box[0] + place * box[2], box[1] + box[3] / 2)
            assert page.run(visible) == f"inset(0px {100 - share}% 0px 0px)"
            (tmp_path / "shot.png").write_bytes(base64.b64decode(page.screenshot()))
            pictures[share] = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
        place = page.run("(({x, y, width, height}) => [x, y, x + width, y + height])"
                         "(document.querySelector('.case .compare').getBoundingClientRect())")  # fmt: skip
        left, top, right, bottom = (int(value) for value in place)
        inside = np.abs(pictures[0] - pictures[100])[max(top, 0) : bottom, left:right]
        assert inside.mean() > 2  # prediction and truth are not the same picture
        assert page.errors == []


# What a user can get wrong


def test_wrong_input_is_one_line(scored, tmp_path, typed):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.json").write_text((scored / "Vimeo90K-dis.json").read_text()[:100])
    (tmp_path / "other.json").write_text('{"benchmark": "Vimeo90K"}')
    (tmp_path / "list.json").write_text("[1]")
    older = result(scored, "Vimeo90K-dis")
    del older["device"]
    store.write(tmp_path / "older.json", older)
    store.write(tmp_path / "times.json", {"benchmark": store.SPEED, "device": "this", "rows": [{"model": "IFRNet"}]})
    times = {"benchmark": store.SPEED, "device": "this", "rows": [], "versions": {}, "command": "python a.py"}
    store.write(tmp_path / "speed.json", times)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "Vimeo90K-dis.json").write_text((scored / "Vimeo90K-dis.json").read_text())
    lacks = "not a result of a benchmark: no usable"
    for words, line in (
        (["empty"], "empty: no results here; run a benchmark"),
        (["missing"], "missing: no results here; run a benchmark"),  # as results/ is before the first benchmark
        (["gone.json"], "gone.json: no such file"),
        (["cut.json"], "cut.json: not a whole JSON file"),
        (["other.json"], f"other.json: {lacks} model"),
        (["older.json"], f"older.json: {lacks} device; mend it or move it away"),
        (["times.json"], f"times.json: {lacks} rows.0.size, rows.0.frames, rows.0.mode; mend"),
        (["speed.json"], "speed.json: only times here, no scores; run a benchmark first"),
        (["list.json"], f"list.json: {lacks} names; mend"),
        (["results", "again"], "Vimeo90K-dis.json: a result of this name is in .*results too; rename one"),
    ):
        done = make(typed, *(tmp_path / word for word in words), "--out", tmp_path / "report")
        assert done.status == 2 and re.search(line, done.err) and done.err.count("\n") == 1
    assert not (tmp_path / "report").exists()
