"""Line charts as SVG: deterministic text, so that a rebuilt document differs only where the figures do."""

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 74, 24, 58, 56
COLOURS = ["#0b66c3", "#d1495b", "#2e8b57", "#8757b8", "#c77d0a", "#5b6470"]
INK, SOFT, GRID = "#1f2933", "#5b6470", "#e4e7eb"


@dataclass(frozen=True)
class Series:
    """A line; `points` are (x, y), or (x, y, lowest y, highest y) where there were several runs."""

    name: str
    points: list
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    title: str
    x: str
    y: str
    series: list
    log_x: bool = False
    log_y: bool = False
    # Values worth a horizontal line: (value, text).
    lines: tuple = ()


def number(value: float) -> str:
    """As people write it: 1,500; 12; 0.25."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values that cover low to high; the first and the last are the ends of the axis."""
    if log:
        steps = (1, 2, 5) if high / low < 200 else (1,)
        exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        every = [step * 10.0**exponent for exponent in exponents for step in steps]
        first = max((value for value in every if value <= low * 1.0001), default=every[0])
        last = min((value for value in every if value >= high * 0.9999), default=every[-1])
        return [value for value in every if first <= value <= last]
    span = (high - low) or 1.0
    rough = span / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * at, 10) for at in range(first, last + 1)]


class Axis:
    def __init__(self, values: list[float], log: bool, start: float, end: float):
        low = min(values)
        self.log = log
        self.ticks = ticks(low if log else min(low, 0.0), max(values), log)
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start), 1)


def render(chart: Chart) -> str:
    """The chart, which has points, as the text of an SVG file."""
    xs = [point[0] for series in chart.series for point in series.points]
    ys = [y for series in chart.series for point in series.points for y in point[1:]]
    ys += [value for value, _ in chart.lines]
    if chart.log_y:
        ys = [y for y in ys if y > 0]
    x_axis = Axis(xs, chart.log_x, LEFT, WIDTH - RIGHT)
    y_axis = Axis(ys, chart.log_y, HEIGHT - BOTTOM, TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
        text(LEFT - 50, 24, chart.title, 15, INK, weight=600),
    ]
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{GRID}"/>')
        out.append(text(LEFT - 8, y + 4, number(tick), 11, SOFT, anchor="end"))
    for tick in x_ticks(chart, x_axis):
        x = x_axis.at(tick)
        out.append(f'<line x1="{x}" x2="{x}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}" stroke="{SOFT}"/>')
        out.append(text(x, HEIGHT - BOTTOM + 18, number(tick), 11, SOFT, anchor="middle"))
    base = HEIGHT - BOTTOM
    out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" stroke="{SOFT}"/>')
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, chart.x, 12, SOFT, anchor="middle"))
    out.append(
        f'<text transform="translate(18 {(TOP + base) / 2}) rotate(-90)" font-size="12" fill="{SOFT}" '
        f'text-anchor="middle">{escape(chart.y)}</text>'
    )
    for value, name in chart.lines:
        y = y_axis.at(value)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{SOFT}" stroke-dasharray="2 4"/>')
        out.append(text(WIDTH - RIGHT - 4, y - 5, name, 10, SOFT, anchor="end"))
    for at, series in enumerate(chart.series):
        out += drawn(series, COLOURS[at % len(COLOURS)], x_axis, y_axis)
    out += legend(chart.series)
    return "\n".join(out + ["</svg>", ""])


def x_ticks(chart: Chart, axis: Axis) -> list[float]:
    """The measured places themselves where they have room, else round values."""
    places = sorted({point[0] for series in chart.series for point in series.points})
    at = [axis.at(place) for place in places]
    roomy = all(right - left > 38 for left, right in zip(at, at[1:]))
    return places if roomy else axis.ticks


def drawn(series: Series, colour: str, x_axis: Axis, y_axis: Axis) -> list[str]:
    points = [point for point in series.points if not y_axis.log or min(point[1:]) > 0]
    if not points:
        return []
    out = []
    if any(len(point) == 4 for point in points):
        high = [f"{x_axis.at(point[0])},{y_axis.at(point[-1])}" for point in points]
        low = [f"{x_axis.at(point[0])},{y_axis.at(point[2] if len(point) == 4 else point[1])}" for point in points]
        out.append(f'<polygon points="{" ".join(high + low[::-1])}" fill="{colour}" opacity="0.12"/>')
    line = " ".join(f"{x_axis.at(point[0])},{y_axis.at(point[1])}" for point in points)
    dash = ' stroke-dasharray="6 4"' if series.dashed else ""
    out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.2" stroke-linejoin="round"{dash}/>')
    for point in points:
        x, y = x_axis.at(point[0]), y_axis.at(point[1])
        out.append(f'<circle cx="{x}" cy="{y}" r="3.2" fill="#ffffff" stroke="{colour}" stroke-width="2"/>')
    return out


def legend(series: list[Series]) -> list[str]:
    out, x = [], LEFT - 50
    for at, one in enumerate(series):
        if not one.name:
            continue
        colour = COLOURS[at % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if one.dashed else ""
        out.append(f'<line x1="{x}" x2="{x + 18}" y1="41" y2="41" stroke="{colour}" stroke-width="3"{dash}/>')
        out.append(text(x + 24, 45, one.name, 12, INK))
        x += 24 + round(len(one.name) * 6.6) + 22
    return out


def text(x: float, y: float, words: str, size: int, fill: str, anchor: str = "start", weight: int = 400) -> str:
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{bold}>{escape(words)}</text>'
