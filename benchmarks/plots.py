"""Plots as SVG, without a plotting library: points and lines over two axes, readable in a page and in a paper."""

import math
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 180, 34, 48  # margins; the legend is in the right one
ROW = 18  # height of a line of the legend
LONGEST = 21  # letters of a name that are shown
TICKS = 5  # of an axis
DIGITS = 12  # of a tick: enough to tell close values apart, too few to show the error of binary fractions
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")


class Series(NamedTuple):
    """points: (x, y, name). line: whether they are joined; otherwise each is labelled with its name."""

    name: str
    points: list[tuple[float, float, str]]
    line: bool = False


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that divide a range, about TICKS of them."""
    rough = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _limits(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def plot(title: str, x_name: str, y_name: str, series: list[Series], log_x: bool = False) -> str:
    """An SVG picture, "" where there is nothing to draw. log_x: a logarithmic x axis, for positive x. Points that are
    not finite are left out."""
    series = [s._replace(points=[p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1])]) for s in series]
    series = [s for s in series if s.points]
    points = [point for s in series for point in s.points]
    if not points:
        return ""
    along = math.log10 if log_x else float
    x_low, x_high = _limits([along(x) for x, _, _ in points])
    y_low, y_high = _limits([y for _, y, _ in points])
    height = max(HEIGHT, TOP + ROW * (len(series) + 1))
    right, floor = WIDTH - RIGHT, height - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (along(x) - x_low) / (x_high - x_low) * (right - LEFT),
            floor - (y - y_low) / (y_high - y_low) * (floor - TOP),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif" '
        f'font-size="12"><title>{escape(title)}</title><rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-weight="bold" font-size="14">{escape(title)}</text>',
        f'<text x="{(LEFT + right) / 2}" y="{height - 10}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text x="14" y="{(TOP + floor) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + floor) / 2})">{escape(y_name)}</text>',
    ]
    for x in _log_ticks(x_low, x_high) if log_x else ticks(x_low, x_high):
        px = at(x, y_low)[0]
        parts.append(f'<path d="M{px:.1f} {TOP}V{floor}" stroke="#ddd"/>')
        parts.append(f'<text x="{px:.1f}" y="{floor + 16}" text-anchor="middle">{x:.{DIGITS}g}</text>')
    for y in ticks(y_low, y_high):
        py = at(1, y)[1]
        parts.append(f'<path d="M{LEFT} {py:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{y:.{DIGITS}g}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{floor}H{right}" fill="none" stroke="#444"/>')
    for k, s in enumerate(series):
        colour = COLOURS[k % len(COLOURS)]
        places = [at(x, y) for x, y, _ in s.points]
        if s.line:
            path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
            parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        radius = 2 if s.line and len(places) > 20 else 4
        for number, ((px, py), (x, y, what)) in enumerate(zip(places, s.points)):
            about = f"<title>{escape(f'{s.name}, {what}: {x:.4g}, {y:.4g}')}</title>"
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius}" fill="{colour}">{about}</circle>')
            if not s.line:
                # Names extend inwards; neighbouring ones alternate between above and below.
                side, anchor = (7, "start") if px < (LEFT + right) / 2 else (-7, "end")
                place = f'x="{px + side:.1f}" y="{py + (14 if number % 2 else -6):.1f}" text-anchor="{anchor}"'
                parts.append(f'<text {place} font-size="11">{escape(_short(what))}</text>')
        row = TOP + 8 + ROW * k
        parts.append(f'<circle cx="{right + 16}" cy="{row}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{right + 26}" y="{row + 4}">{escape(_short(s.name))}</text>')
    return "".join(parts) + "</svg>"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within a range of logarithms; those of `ticks` where fewer than two fit in."""
    candidates = [k * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for k in (1, 2, 5)]
    found = [x for x in candidates if low <= math.log10(x) <= high]
    return found if len(found) > 1 else ticks(10**low, 10**high)
