"""Draws the dashboards as Grafana lays them out, from a Prometheus, into a PNG each: for those who have no Grafana.

    python -m tidings_dashboards.render PROMETHEUS-URL FOLDER SECONDS
"""

import math
import sys
import textwrap
import time
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from . import live

# Pixels of Grafana's grid at a width of 1680.
COLUMN, ROW, GAP = 70, 38, 8
DPI = 110
BACK, CARD, EDGE, TEXT, DIM, GRID = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#8e9196", "#25282e"
COLORS = ["#73bf69", "#5794f2", "#f2cc0c", "#ff9830", "#b877d9", "#f2495c", "#8ab8ff", "#96d98d", "#ffb357", "#ca95e5"]
NAMED = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c", "orange": "#ff9830", "blue": "#5794f2", "text": TEXT}
SUFFIX = {"cps": " c/s", "reqps": " req/s", "Bps": "/s"}


def figure_of(value: float, unit: str, decimals=None) -> str:
    """A value in its unit, as short as it can be read."""
    def digits(number):
        if decimals is not None:
            return f"{number:.{int(decimals)}f}"
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"

    if unit == "percentunit":
        return f"{value * 100:.{int(decimals) if decimals is not None else 1}f} %"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s"
    if unit in ("bytes", "Bps"):
        for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}{SUFFIX.get(unit, '')}"
        return f"{digits(value)} B{SUFFIX.get(unit, '')}"
    for size, name in ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}{SUFFIX.get(unit, '')}"
    return digits(value) + SUFFIX.get(unit, "")


def legend_of(pattern: str, labels: dict) -> str:
    for name, value in labels.items():
        pattern = pattern.replace("{{" + name + "}}", value)
    return pattern


def asked(server, panel, seconds):
    """(legend, times, values) of each series of a panel."""
    step = max(1, seconds // 240)
    found = []
    for target in panel["targets"]:
        for labels, times, values in server.series(target["expr"], seconds, step):
            found.append((legend_of(target["legendFormat"], labels), times, values))
    return found


def card(figure, x, y, width, height, title):
    """The panel's background; coordinates in pixels from the upper left corner."""
    total_w, total_h = figure.get_size_inches() * DPI
    box = (x / total_w, 1 - (y + height) / total_h, width / total_w, height / total_h)
    axes = figure.add_axes(box, facecolor=CARD)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=EDGE, linewidth=0.8)
    axes.text(10 / width, 1 - 9 / height, title, color=TEXT, fontsize=8.5, fontweight="bold", va="top", transform=axes.transAxes)

    def inner(left, top, right, bottom):
        place = ((x + left) / total_w, 1 - (y + height - bottom) / total_h,
                 (width - left - right) / total_w, (height - top - bottom) / total_h)
        return figure.add_axes(place, facecolor="none")
    return axes, inner


def threshold(panel, value):
    color = "green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step.get("value") is None or value >= step["value"]:
            color = step["color"]
    return NAMED.get(color, color)


def draw_number(server, panel, place, seconds, axes, inner):
    defaults = panel["fieldConfig"]["defaults"]
    series = asked(server, panel, seconds)
    if not series:
        axes.text(0.5, 0.45, "No data", color=DIM, fontsize=12, ha="center", va="center", transform=axes.transAxes)
        return
    _, times, values = series[0]
    color, shown = threshold(panel, values[-1]), figure_of(values[-1], defaults["unit"], defaults.get("decimals"))
    for mapping in defaults.get("mappings", []):
        word = mapping["options"].get(f"{values[-1]:g}")
        if word:
            shown, color = word["text"], NAMED.get(word["color"], word["color"])
    line = inner(0, 80, 0, 1)
    line.set_axis_off()
    line.fill_between(times, values, color=color, alpha=0.22, linewidth=0)
    line.plot(times, values, color=color, linewidth=1)
    line.set_xlim(times[0], times[-1] if times[-1] > times[0] else times[0] + 1)
    low, high = min(values), max(values)
    line.set_ylim(min(low, 0) if low < 0.5 * high else low - (high - low or 1), high + 0.05 * (high - low or abs(high) or 1))
    size = min(21, 1.35 * place["w"] * COLUMN / max(4, len(shown)))
    axes.text(0.5, 0.54, shown, color=color, fontsize=size, fontweight="bold", ha="center", va="center",
              transform=axes.transAxes, zorder=5)


def draw_series(server, panel, place, seconds, axes, inner):
    defaults = panel["fieldConfig"]["defaults"]
    unit, custom = defaults["unit"], defaults.get("custom", {})
    fixed = {rule["matcher"]["options"]: each["value"]["fixedColor"]
             for rule in panel["fieldConfig"].get("overrides", []) for each in rule["properties"] if each["id"] == "color"}
    series = asked(server, panel, seconds)
    if not series:
        axes.text(0.5, 0.45, "No data", color=DIM, fontsize=12, ha="center", va="center", transform=axes.transAxes)
        return
    series.sort(key=lambda each: -max(each[2])) if len(series) > 6 else None
    # As many as leave half of the panel to the lines.
    lines = min(len(series), max(2, int((place["h"] * ROW / 2 - 45) / 15)))
    plot = inner(64, 34, 14, 30 + 15 * (lines + 1))
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    colors = [NAMED.get(fixed.get(name), COLORS[at % len(COLORS)]) for at, (name, _, _) in enumerate(series)]
    if stacked:
        # Series may begin late: where one is not, it is 0.
        times = sorted(set().union(*(each[1] for each in series)))
        base = [0.0] * len(times)
        for (_, own, values), color in zip(series, colors):
            known = dict(zip(own, values))
            upper = [low + known.get(at, 0) for low, at in zip(base, times)]
            dates = date2num([datetime.fromtimestamp(at) for at in times])
            plot.fill_between(dates, base, upper, color=color, alpha=0.35, linewidth=0)
            plot.plot(dates, upper, color=color, linewidth=1)
            base = upper
    else:
        for (_, times, values), color in zip(series, colors):
            dates = date2num([datetime.fromtimestamp(at) for at in times])
            plot.plot(dates, values, color=color, linewidth=1.1)
            plot.fill_between(dates, values, color=color, alpha=0.06, linewidth=0)
    top = max(plot.get_ylim()[1], 1 if not any(map(any, (each[2] for each in series))) else 1e-9)
    steps = [step["value"] for step in defaults["thresholds"]["steps"] if step.get("value") is not None]
    if custom.get("thresholdsStyle") and steps:
        top = max(top, 1.15 * steps[0]) if steps[0] < 20 * top else top
        plot.axhspan(steps[0], max(top, steps[0]), color=NAMED["red"], alpha=0.10, linewidth=0)
        plot.axhline(steps[0], color=NAMED["red"], linewidth=0.8, alpha=0.8)
    plot.set_ylim(0, defaults.get("max") or top)
    plot.set_xlim(*(date2num(datetime.fromtimestamp(server.end - back)) for back in (seconds, 0)))
    if unit in ("bytes", "Bps"):
        plot.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(max(top, 8) / 5))))
    else:
        plot.yaxis.set_major_locator(MaxNLocator(5, integer=unit == "short" and top > 4))
    plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: figure_of(value, unit)))
    locator = AutoDateLocator(minticks=3, maxticks=6)
    plot.xaxis.set_major_locator(locator)
    plot.xaxis.set_major_formatter(ConciseDateFormatter(locator, formats=["%H:%M"] * 5 + ["%H:%M:%S"], show_offset=False,
                                                        zero_formats=["%H:%M"] * 6))
    plot.grid(color=GRID, linewidth=0.7)
    plot.set_axisbelow(True)
    plot.tick_params(colors=DIM, labelsize=7, length=0)
    for spine in plot.spines.values():
        spine.set_visible(False)
    width, height = axes.bbox.width, axes.bbox.height
    scale = DPI / axes.figure.dpi
    width, height = width * scale, height * scale

    def word(right, line, text, color=DIM, **more):
        axes.text(1 - right / width if right >= 0 else -right / width, (8 + 15 * (lines - line)) / height, text, color=color,
                  fontsize=7.5, va="bottom", ha="right" if right >= 0 else "left", transform=axes.transAxes, **more)
    columns = ((150, "mean"), (80, "max"), (12, "last"))
    for right, name in columns:
        word(right, 0, name)
    room = int((width - 250) / 6)
    for line, ((name, _, values), color) in enumerate(list(zip(series, colors))[:lines], 1):
        word(-12, line, "▬", color)
        word(-30, line, textwrap.shorten(name, max(room, 8), placeholder="…") if " " in name else name[:room], TEXT)
        for (right, _), value in zip(columns, (sum(values) / len(values), max(values), values[-1])):
            word(right, line, figure_of(value, unit, defaults.get("decimals")), TEXT)


def draw(server, dashboard, file: Path, seconds: int):
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    head = 44
    height = head + ROW * max(place["y"] + place["h"] for place in places) + GAP
    figure = plt.figure(figsize=(24 * COLUMN / DPI, height / DPI), dpi=DPI, facecolor=BACK)
    figure.text(GAP / (24 * COLUMN), 1 - 14 / height, dashboard["title"], color=TEXT, fontsize=13, fontweight="bold", va="top")
    figure.text(1 - GAP / (24 * COLUMN), 1 - 18 / height, f"the last {seconds} s, {datetime.fromtimestamp(server.end):%Y-%m-%d %H:%M:%S}", color=DIM,
                fontsize=8.5, va="top", ha="right")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place["x"] * COLUMN, head + place["y"] * ROW
        if panel["type"] == "row":
            figure.text((x + 8) / (24 * COLUMN), 1 - (y + ROW / 2) / height, "⌄  " + panel["title"], color=TEXT, fontsize=10, va="center")
            continue
        axes, inner = card(figure, x + GAP / 2, y + GAP / 2, place["w"] * COLUMN - GAP, place["h"] * ROW - GAP, panel["title"])
        (draw_number if panel["type"] == "stat" else draw_series)(server, panel, place, seconds, axes, inner)
    # Whoever looks meanwhile sees the one before.
    part = file.with_suffix(".part")
    figure.savefig(part, format="png", dpi=DPI, facecolor=BACK)
    part.replace(file)
    plt.close(figure)


def main():
    server, folder, seconds = live.Prometheus(sys.argv[1], time.time()), Path(sys.argv[2]), int(sys.argv[3])
    live.VARIABLES["$__rate_interval"] = "15s"
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams["font.family"] = "DejaVu Sans"
    for dashboard in live.dashboards():
        if any(panel.get("targets") for panel in dashboard["panels"]):
            draw(server, dashboard, folder / f"{dashboard['uid']}.png", seconds)
            print(folder / f"{dashboard['uid']}.png")


if __name__ == "__main__":
    main()
