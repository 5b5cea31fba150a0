"""docs/benchmarks.md and its plots, from the raw results and the hand-written findings."""

from pathlib import Path
from statistics import median

from . import svg
from .measures import CONTRACT, MEASURES, Figure, Measure, figure, others, per_unit, seconds, server, softirq, values
from .results import Results
from .tests import FACTORS, RATES, STANDARD

INTRO = """\
# Benchmarks

<!-- Made by load-tests/bench from docs/benchmarks/results.jsonl and docs/benchmarks/findings.md: edit these. -->

What Tidings costs and carries, measured by its black-box [load generator](../load-tests/README.md). One command makes
all of it anew, in about forty minutes, with the services it needs:

```sh
load-tests/bench
```

**How to read it.** Generator, node, Postgres, Redis and Kafka share the {cores} cores of one machine: rates are what is
left beside the generator, and its work makes latencies longer. CPU is user + system of *all* server-side processes;
*softirq* is the kernel's work on loopback packets, of both ends, that no process is charged for, in the same unit;
*others* is the share of the machine that unrelated processes took meanwhile: where that is more than a few percent,
rates are too low and latencies too high. Every figure is the median, with the lowest and the highest of its runs; each
run had a fresh node on an empty database.

**Peers** are figures measured before on this kind of machine ({cores} shared cores, the same generator-beside-server
arrangement), except where it says published; they were not run again for this document. *Gate* is what must hold, *aim*
what we are after.
"""

NOT_MEASURED = """\
## What was not measured

- A network: all is loopback, without loss, delay, TLS or a balancer in front. Real networks cost the kernel more and
  the round trip itself.
- Disks other than this machine's, a standby that commits wait for, Redis Cluster or Sentinel, more than one Kafka broker.
- The generator's own share apart from the server's: on the same {cores} cores it takes what the last table says, so the
  saturation of a node that has the cores for itself lies higher.
- More than {files:,} sockets of one process, its limit of open files; ten nodes together are in [capacity.md](capacity.md).
- Old clients without the subprotocol, and acknowledgements by clients instead of pongs, at full rate.
- Days: the longest run here takes two minutes. `scripts/soak` runs for hours.
"""


def write(docs: Path, results: Results) -> None:
    """`docs` holds benchmarks.md and the folder benchmarks; what is written by hand there stays."""
    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: chart for name, chart in charts(results).items() if any(series.points for series in chart.series)}
    for name, chart in drawn.items():
        (folder / f"{name}.svg").write_text(svg.render(chart))
    findings = folder / "findings.md"
    if not findings.exists():
        findings.write_text("## Findings\n\nNothing written yet.\n")
    machine = (results.setups() or [{"machine": {}}])[-1]["machine"]
    cores, files = machine.get("cores", "?"), machine.get("open files for each process", 0)
    quick = any(one.get("quick") for one in results.setups())
    parts = [
        "> **Not figures:** made by `--quick`, which shows only that all works.\n" if quick else "",
        INTRO.format(cores=cores),
        main_table(results),
        contract_table(results),
        faults(results),
        curves(drawn),
        findings.read_text().strip() + "\n",
        NOT_MEASURED.format(cores=cores, files=files),
        by_process(results),
        setup(results),
    ]
    (docs / "benchmarks.md").write_text("\n".join(part for part in parts if part))


def spread(found: Figure, unit: str = "") -> str:
    if found.count == 1:
        return f"**{svg.number(found.middle)}**{unit} (one run)"
    return f"**{svg.number(found.middle)}**{unit} ({svg.number(found.low)}–{svg.number(found.high)}, n={found.count})"


def verdict(measure: Measure, value: float) -> str:
    if measure.aim is not None and measure.meets(value, measure.aim):
        return "aim met"
    if measure.gate is not None:
        return "gate met" if measure.meets(value, measure.gate) else "**missed**"
    return ""


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def limit(measure: Measure, value: float | None) -> str:
    return "" if value is None else f"{svg.number(value)}"


def main_table(results: Results) -> str:
    lines = ["## The measures", "", row("measure", "unit", "peers, same kind of machine", "gate", "aim", "Tidings", "", "softirq", "others"),
             row("---", "---", "---", "--:", "--:", "---", "---", "--:", "--:")]
    for measure in MEASURES:
        reports = results.reports(measure.test)
        found = figure(measure, reports)
        if not found:
            lines.append(row(measure.name, measure.unit, measure.peers, limit(measure, measure.gate), limit(measure, measure.aim), "not measured", "", "", ""))
            continue
        more = "".join(f"; {name} {svg.number(median(values(value, reports)))}" for name, value in measure.beside if values(value, reports))
        aside = ["", ""]
        if measure.cost:
            of_cpu = measure.unit == "µs"
            aside[0] = svg.number(median(values(lambda report: per_unit(measure, report, softirq), reports))) if of_cpu else ""
            aside[1] = f"{median(values(lambda report: others(measure.cost(report)), reports)):.0%}"
        lines.append(row(measure.name, measure.unit, measure.peers, limit(measure, measure.gate), limit(measure, measure.aim),
                         spread(found) + more, verdict(measure, found.middle), *aside))
    return "\n".join(lines) + "\n"


def contract_table(results: Results) -> str:
    lines = ["The figures that the service's contract names:", "", row("figure", "contract", "measured", ""), row("---", "--:", "---", "---")]
    for measure in CONTRACT:
        found = figure(measure, results.reports(measure.test))
        sign = "≥" if measure.more_is_better else "≤"
        met = "" if not found else "met" if measure.meets(found.middle, measure.gate) else "**missed**"
        lines.append(row(measure.name, f"{sign} {svg.number(measure.gate)} {measure.unit}", spread(found) if found else "not measured", met))
    return "\n".join(lines) + "\n"


def faults(results: Results) -> str:
    """Runs in which a promise did not hold, if there were any."""
    bad = [line for test in results.tests() for line in results.of(test) if line["faults"]]
    total = sum(len(results.of(test)) for test in results.tests())
    if not bad:
        return f"In all {total} runs every acknowledged message reached each of its recipients, none was missing and none came twice.\n"
    lines = [f"In {len(bad)} of {total} runs something did not hold:", ""]
    return "\n".join(lines + [f"- {line['test']}, run {line['repeat']}: {'; '.join(line['faults'])}" for line in bad]) + "\n"


# --- curves ----------------------------------------------------------------------------------------


def points(reports_at: dict, value) -> list[tuple]:
    """(x, median, lowest, highest) where there is something."""
    found = {x: values(value, reports) for x, reports in reports_at.items()}
    return [(x, y.middle, y.low, y.high) for x, y in ((x, Figure.of(each)) for x, each in found.items() if each)]


def by_step(results: Results, test: str, key: str) -> dict:
    """The steps of all runs of a test that has steps, by what makes them differ."""
    at: dict = {}
    for report in results.reports(test):
        for one in report["steps"]:
            at.setdefault(one[key], []).append(one)
    return at


def loads(results: Results) -> dict:
    """By offered rate. A node that did not keep up has no latency worth a point."""
    at = {rate: results.reports(f"load-{rate}") for rate in RATES}
    return {rate: reports for rate, reports in at.items() if reports}


def charts(results: Results) -> dict[str, svg.Chart]:
    steps, groups = by_step(results, "steps", "sockets"), by_step(results, "groups", "members")
    load = loads(results)
    over = {factor: results.reports(f"overload-{factor}") for factor in FACTORS}
    second = lambda key: lambda report: report["second_half"][key]
    p99 = lambda half: lambda report: report[half]["latency"].get("ack", {}).get("p99_us", 0) / 1e3
    cpu = lambda key, name: lambda report: report[key].get(name, 0.0)
    delivery = lambda name: lambda one: one["saturation"]["us_per_delivery"].get(name, 0.0)
    return {
        "memory": svg.Chart("Memory of an idle socket stays the same", "open sockets", "bytes per socket", [
            svg.Series("RSS of the node, all sockets", points(steps, lambda one: one["bytes_per_socket"]["node"])),
            svg.Series("of those opened last", points(steps, lambda one: one["bytes_per_socket_more"]["node"]), dashed=True),
        ], lines=((2048, "aim 2 KiB"), (4096, "gate 4 KiB"))),
        "connects": svg.Chart("CPU of a connect stays the same", "open sockets", "µs of CPU per connect", [
            svg.Series("all server processes", points(steps, lambda one: server(one["us_per_connect"]))),
            svg.Series("node", points(steps, lambda one: one["us_per_connect"]["node"])),
        ]),
        "groups": svg.Chart("CPU of a delivery falls with the size of the group", "members, one of them writing, at saturation", "µs of CPU per delivery", [
            svg.Series("all server processes", points(groups, lambda one: server(one["saturation"]["us_per_delivery"]))),
            *[svg.Series(name, points(groups, delivery(name))) for name in ("node", "postgres", "redis")],
        ], log_x=True, log_y=True),
        "load-cost": svg.Chart("CPU of a message falls with the load", "messages a second, one to one, on schedule", "µs of CPU per message", [
            svg.Series("all server processes", points(load, lambda report: server(report["us_per_message"]))),
            *[svg.Series(name, points(load, cpu("us_per_message", name))) for name in ("node", "postgres", "redis")],
        ]),
        "load-latency": svg.Chart("Latency to the recipient", "messages a second, one to one, on schedule", "ms", [
            svg.Series("p50", points(load, ms_of("delivery", "p50_us"))),
            svg.Series("p99", points(load, ms_of("delivery", "p99_us"))),
            svg.Series("p99 to the acknowledgement", points(load, ms_of("ack", "p99_us")), dashed=True),
        ], log_y=True),
        "overload-rate": svg.Chart("Beyond the limit it refuses", "offered load, times the saturation", "messages a second", [
            svg.Series("accepted", points(over, second("messages_per_second"))),
            svg.Series("refused", points(over, second("refusals_per_second"))),
        ]),
        "overload-latency": svg.Chart("and what it accepts stays bounded", "offered load, times the saturation", "ms to the acknowledgement, p99", [
            svg.Series("first half of the run", points(over, p99("first_half"))),
            svg.Series("second half: no queue grows", points(over, p99("second_half")), dashed=True),
        ], log_y=True),
    }


def ms_of(what: str, quantile: str):
    return lambda report: report["latency"].get(what, {}).get(quantile, 0) / 1e3


def curves(drawn: dict) -> str:
    plots = {
        "Cost grows as work grows": ("memory", "connects", "groups", "load-cost"),
        "Latency": ("load-latency",),
        "Overload": ("overload-rate", "overload-latency"),
    }
    lines = ["## Curves", "", "Bands show the lowest and the highest run where there was more than one.", ""]
    for title, names in plots.items():
        lines += [f"### {title}", "", *[f"![{drawn[name].title}](benchmarks/{name}.svg)" for name in names if name in drawn], ""]
    return "\n".join(lines)


# --- what it was made of -----------------------------------------------------------------------------


def by_process(results: Results) -> str:
    names = ("node", "postgres", "redis", "kafka", "loadgen")
    lines = ["## CPU by process", "", "Medians, in the measure's unit; `loadgen` is the generator, which is not in any figure above.", "",
             row("measure", *names), row("---", *["--:"] * len(names))]
    for measure in MEASURES:
        reports = results.reports(measure.test)
        if not reports or measure.unit != "µs" or not measure.cost:
            continue
        each = []
        for name in names:
            used = values(lambda report: per_unit(measure, report, lambda cost: seconds(cost).get(name, 0.0)), reports)
            each.append(svg.number(round(median(used), 2)) if used else "")
        lines.append(row(measure.name, *each))
    return "\n".join(lines) + "\n"


def setup(results: Results) -> str:
    lines = ["## What it ran on", ""]
    setups = results.setups()
    for at, one in enumerate(setups):
        if len(setups) > 1:
            lines += [f"Commit {one['commit']}, from {one['at']}:", ""]
        facts = {"commit": one["commit"], "date": one["at"], **one["machine"], **one["versions"]}
        lines += [row("", ""), row("---", "---"), *[row(name, str(value)) for name, value in facts.items()], ""]
    lines += [
        "**Payload**: 120 bytes of text in each message, some 620 bytes as the event that a recipient gets; UUIDs of users and "
        "conversations are random. **Fan-out**: one recipient one to one, the group's members less one in groups, all of them connected "
        "unless it says otherwise. **Durability**: an acknowledgement follows the commit, with the settings of Postgres "
        "above, or SQLite's WAL with `synchronous=FULL`; delivery counts when a device's pong proved it, and the receipt "
        "is stored.", "",
        "**Nodes**: every setting is the default of [.env.example](../.env.example) but for addresses and",
        "", "```", *[f"{name}={value}" for name, value in node_settings(setups).items()], "```", "",
        "and `AUTH_MODE=jwt` with an HS256 key where the table says so.", "",
        "**Tests**, and the arguments of `loadgen`; all else is its default:", "",
        row("test", "what", "runs", "commit", "node", "`loadgen`"), row("---", "---", "--:", "---", "---", "---"),
    ]
    for test in STANDARD:
        of = results.of(test.name)
        if of:
            kind = ", ".join(["cluster" if test.cluster else "single node", *(["jwt"] if test.jwt else []), *[f"{name}={value}" for name, value in test.settings.items()]])
            commits = ", ".join(dict.fromkeys(line["commit"] for line in of))
            lines.append(row(test.name, test.about, str(len(of)), commits, kind, f"`{' '.join(of[-1]['command'])}`"))
    return "\n".join(lines) + "\n"


def node_settings(setups: list[dict]) -> dict:
    return setups[-1]["node"] if setups else {}
