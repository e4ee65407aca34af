"""One self-contained page with all results: tables, plots, and the cases that are worth a look."""

import base64
from html import escape

import cv2
import numpy as np

from benchmarks.tables import NOTE, Table, has_note, heads, labels, texts
from utils import io

WIDEST = 960  # pixels: the largest width of a picture in the page
ERROR_GAIN = 4  # of the error picture


def picture(image: np.ndarray) -> str:
    """A picture as a data URL."""
    width = min(WIDEST, image.shape[1])
    if width < image.shape[1]:
        image = cv2.resize(image, (width, round(image.shape[0] * width / image.shape[1])), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 90])[1]
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def error_picture(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The mean difference over the channels, amplified: black is right, white is wrong."""
    difference = np.abs(prediction.astype(np.int16) - target).mean(2, keepdims=True)
    return np.clip(difference * ERROR_GAIN, 0, 255).astype(np.uint8).repeat(3, 2)


def shown_case(name: str, result: dict, case: dict) -> str:
    """A case with its slider, its error and its flow. name: that of the model's row."""
    caption = f"{result['benchmark']} {case['split']}: {name}, {case['why']} case {case['name']}"
    head = f"<h4>{escape(caption)}, t = {case['t']:g}, {case['psnr']:.2f} dB</h4>"
    paths = {kind: result["folder"] / case[kind] for kind in ("prediction", "target", "flow") if case[kind]}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        return f"{head}<p>Its pictures are not beside the result: {escape(', '.join(missing))}</p>"
    try:
        pictures = dict(zip(paths, io.read_frames(list(paths.values()))))
    except ValueError as error:
        return f"{head}<p>{escape(str(error))}</p>"
    height, width = pictures["target"].shape[:2]
    pictures["error"] = error_picture(pictures["prediction"], pictures["target"])
    address = {kind: picture(image) for kind, image in pictures.items()}
    parts = [
        f'<figure><div class="compare" style="aspect-ratio:{width}/{height}">'
        f'<img src="{address["target"]}" alt="truth"><img class="top" src="{address["prediction"]}" alt="prediction">'
        '</div><input type="range" min="0" max="100" value="50" aria-label="how much of the truth is covered">'
        "<figcaption>prediction | truth</figcaption></figure>",
    ]
    for kind, about in (("error", f"error, amplified {ERROR_GAIN} times"), ("flow", "flow to the first frame")):
        if kind in address:
            parts.append(f'<figure><img src="{address[kind]}" alt="{kind}"><figcaption>{about}</figcaption></figure>')
    return f'<section class="case">{head}<div class="row">{"".join(parts)}</div></section>'


def html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads(table))
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in texts(table, "\1{}\2")
    )
    rows = rows.replace("\1", "<b>").replace("\2", "</b>")  # after the escape
    note = f"<p>{NOTE}.</p>" if has_note(table) else ""
    return (
        f'<h2>{escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def origin(stem: str, result: dict) -> str:
    """What it takes to reproduce a result, of scores or of times."""
    words = [f"protocol {result['protocol']}", result["precision"]] if "protocol" in result else []
    words += [result["device"], *(f"{name} {version}" for name, version in result["versions"].items())]
    about = ", ".join(words)
    if "checkpoint" in result:
        about += f", weights {result['checkpoint']} (SHA-256 {result['checkpoint_sha256']})"
    return f"<p><b>{escape(stem)}</b>: {escape(about)}<br><code>{escape(result['command'])}</code></p>"


def page(tables: list[Table], plots: dict[str, str], results: dict[str, dict], speeds: list[dict]) -> str:
    """The page as HTML. plots: SVG. results: by the name of their file, each with its `folder`. speeds: those of
    speed_parameters.py."""
    parts = [html_table(table) for table in tables]
    parts.append("<h2>Plots</h2>")
    parts.append('<div class="row">' + "".join(f'<div class="plot">{svg}</div>' for svg in plots.values()) + "</div>")
    parts.append("<h2>Cases</h2><p>The worst and the median of every split, by PSNR. Move the slider.</p>")
    names = labels(results)
    for stem, result in results.items():
        parts += [shown_case(names[stem], result, case) for case in result["shown"]]
    parts.append("<h2>How to reproduce</h2>")
    parts += [origin(stem, result) for stem, result in results.items()]
    parts += [origin(speed["benchmark"], speed) for speed in speeds]
    return PAGE.replace("BODY", "\n".join(parts))


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Frame interpolation: results</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left; white-space: nowrap; position: sticky; left: 0; background: #fff }
.row { display: flex; flex-wrap: wrap; gap: 1rem } .plot { flex: 1 1 440px; max-width: 640px }
figure { flex: 1 1 320px; max-width: 460px; margin: 0 } figcaption { color: #666 }
figure img { width: 100%; display: block }
.compare { position: relative } .compare img { position: absolute; inset: 0; height: 100% }
.compare .top { clip-path: inset(0 50% 0 0) } input[type=range] { width: 100%; margin: .4rem 0 }
code { overflow-wrap: anywhere }
</style>
<h1>Frame interpolation: results</h1>
BODY
<script>
for (const slider of document.querySelectorAll("input[type=range]")) {
  const top = slider.parentElement.querySelector(".top");
  slider.addEventListener("input", () => { top.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; });
}
</script>
</html>
"""
