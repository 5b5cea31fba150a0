"""How much of everything so many users need, from the measured costs: the model behind docs/capacity.md.

CPU is what a deployment of this kind runs out of, so the model is a sum: sockets x cost of one that is open, and each
kind of action x its cost, for each kind of process. An action's cost falls with how many of its kind a node has in a
second, because batches grow, so costs are curves over that rate. Costs come from tests with ONE node; that the sum
holds for many is what the ten-node run is for.
"""

import argparse
import math
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import median

from .measures import server, seconds
from .svg import number

REPO = Path(__file__).resolve().parents[2]
PARTS = ("node", "postgres", "redis", "kafka")
# What users of the mixed day do, by loadgen's option; and the rates at which each is measured alone.
ACTIONS = ("sends", "typing", "reads", "reconnects", "pages", "syncs")
ALONE = {"sends": (25, 100, 400), "typing": (100,), "reads": (300,), "reconnects": (30,), "pages": (50,), "syncs": (50,)}
# Only what was said can be read: these sends go on beside the reads, and their cost is taken off.
BESIDE = {"reads": 100}
# As loadgen reports them.
REPORTED = {"sends": "send", "reads": "read", "reconnects": "reconnect", "pages": "page", "syncs": "sync", "typing": "typing"}
# The ten-node run must agree with the model within this, for the sum of all processes and for memory.
MARGIN = 0.25


def said(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Assumptions:
    """Of the busiest hour."""

    messages: float = said(10.0, "messages sent by each connected user in an hour")
    direct: float = said(0.60, "share of messages to one recipient")
    small: float = said(0.30, "share of messages to groups of 10")
    medium: float = said(0.09, "share of messages to groups of 50; the rest goes to groups of 500")
    online: float = said(0.50, "share of the recipients who are connected; of each message to others, one record goes to Kafka")
    reads: float = said(0.30, "read receipts for each delivery: who reads several at once tells it once")
    typing: float = said(1.0, "typing indicators for each message")
    reconnects: float = said(2.0, "new connections of each user in an hour, each with a sync")
    pages: float = said(4.0, "history pages of each user in an hour")
    presence: float = said(6.0, "presence reads of each user in an hour; not measured, taken at the cost of a page")
    headroom: float = said(0.50, "share of each machine's CPU that stays free")
    node_cores: float = said(4.0, "cores of a node's machine")
    node_sockets: float = said(50_000.0, "most sockets of one node, whatever its CPU: what its loss throws at the others")
    postgres_cores: float = said(32.0, "cores of a Postgres primary")
    redis_cores: float = said(1.0, "cores that a Redis shard can use")
    kafka_cores: float = said(4.0, "cores of a Kafka broker")
    replicas: float = said(3.0, "copies of each Kafka record, each taken at the measured cost of the one copy here")

    @property
    def sizes(self) -> list[tuple[float, int]]:
        """(share of the messages, recipients)."""
        return [(self.direct, 1), (self.small, 9), (self.medium, 49), (1 - self.direct - self.small - self.medium, 499)]

    @property
    def fan_out(self) -> float:
        """Connected recipients of a message."""
        return sum(share * recipients * self.online for share, recipients in self.sizes)

    @property
    def with_absent(self) -> float:
        """Share of the messages that somebody who is not connected must get."""
        return sum(share * (1 - self.online**recipients) for share, recipients in self.sizes)


Cost = dict  # by process, microseconds of CPU


def combine(*weighted: tuple[float, Cost]) -> Cost:
    return {part: sum(weight * cost.get(part, 0.0) for weight, cost in weighted) for part in PARTS}


class Curve:
    """A cost over the rate at one node; between two measured rates on a line over the logarithm, beyond them the nearest."""

    def __init__(self, points: list[tuple[float, Cost]]):
        self.points = sorted(points, key=lambda point: point[0])

    def at(self, rate: float) -> Cost:
        below = [point for point in self.points if point[0] <= rate]
        above = [point for point in self.points if point[0] >= rate]
        if not below or not above:
            return (self.points[0] if not below else self.points[-1])[1]
        (low, cheap), (high, dear) = below[-1], above[0]
        if low == high:
            return cheap
        share = math.log(rate / low) / math.log(high / low)
        return combine((1 - share, cheap), (share, dear))


@dataclass(frozen=True)
class Load:
    """Of the whole cluster: open sockets, and so many of each action in a second; `fan_out` counts connected recipients."""

    sockets: float
    rates: dict
    fan_out: float
    # Messages of which somebody absent is told, and shares of the messages by their connected recipients.
    records: float = 0.0
    mix: tuple = ()


class Costs:
    """What one node and its services needed for each thing, from the raw results."""

    NEEDED = ("background", "idle", "absent", "groups", *(f"day-{action}-{rate}" for action, rates in ALONE.items() for rate in rates))

    def __init__(self, results):
        missing = [test for test in self.NEEDED if not results.of(test)]
        if missing:
            raise LookupError(f"there are no results of {', '.join(missing)}: load-tests/bench --resume")
        reports = results.reports
        typical = lambda costs: {part: median(cost.get(part, 0.0) for cost in costs) for part in PARTS}
        a_second = lambda report, length: {part: used * 1e6 / length for part, used in seconds(report["cost"]).items()}
        # Microseconds in a second: of a node and its share of the services, and of one socket more.
        self.background = typical([a_second(report, report["hold_seconds"]) for report in reports("background")])
        self.socket = typical([
            {part: max(used - self.background[part], 0.0) / report["sockets"] for part, used in a_second(report, report["hold_seconds"]).items() if part in PARTS}
            for report in reports("idle")
        ])
        self.actions: dict[str, Curve] = {}
        for action, rates in ALONE.items():
            self.actions[action] = Curve([self.alone(reports(f"day-{action}-{rate}"), action) for rate in rates])
        self.day_fan_out = median(report["outcome"]["delivered"] / report["outcome"]["acked"] for report in reports("day-sends-100"))
        direct = [test for test in results.tests() if test.startswith("load-")]
        self.direct = Curve([(float(test.removeprefix("load-")), typical([self.net(report["us_per_message"], report["messages_per_second"]) for report in reports(test)])) for test in direct])
        steps = {one["members"]: one["saturation"] for report in reports("groups") for one in report["steps"]}
        large = steps[max(steps)]
        self.large_delivery = {part: large["us_per_delivery"].get(part, 0.0) for part in PARTS}
        absent = [self.net(report["us_per_message"], report["messages_per_second"]) for report in reports("absent")]
        present = self.direct.at(reports("absent")[0]["messages_per_second"])
        # What a record adds to a message that one recipient gets anyway; at least the broker's part of it.
        self.record = {part: max(typical(absent)[part] - present[part], 0.0) for part in PARTS}
        held = reports("idle")
        self.connect = typical([report["steps"][0]["us_per_connect"] for report in held])
        self.node_bytes = median(report["rss_before"]["node"] for report in held)
        self.socket_bytes = median(max(report["bytes_per_socket"]["node"], report["after_traffic"]["bytes_per_socket"]["node"]) for report in held)
        self.kernel_bytes = median((report["kernel"]["slab_bytes_per_socket"] + report["kernel"]["buffer_bytes_per_socket"]) / 2 for report in held)
        self.redis_bytes = median(report["bytes_per_socket"]["redis"] for report in held)

    def net(self, per_unit: Cost, rate: float) -> Cost:
        """Without what a node needs with nothing to do."""
        return {part: max(per_unit.get(part, 0.0) - self.background[part] / rate, 0.0) for part in PARTS}

    def alone(self, reports: list[dict], action: str) -> tuple[float, Cost]:
        """The rate that was kept, and the cost of one, without that of the sockets, of sends beside and of nothing to do."""
        found = []
        for report in reports:
            rate = report["per_second"][REPORTED[action]]
            rest = combine((1, self.background), (report["users"], self.socket))
            if action in BESIDE:
                sends = report["per_second"]["send"]
                rest = combine((1, rest), (sends, self.actions["sends"].at(sends)))
            spent = {part: used * 1e6 / report["seconds"] for part, used in seconds(report["cost"]).items() if part in PARTS}
            found.append((rate, {part: max(spent[part] - rest[part], 0.0) / rate for part in PARTS}))
        return median(rate for rate, _ in found), {part: median(cost[part] for _, cost in found) for part in PARTS}

    def message(self, recipients: float, rate: float) -> Cost:
        """One message to so many connected ones, at a node with so many messages a second: from one recipient to those
        of the mixed day a line; beyond, each more costs what it does in the largest group."""
        one, some = self.direct.at(rate), self.actions["sends"].at(rate)
        if recipients <= self.day_fan_out:
            share = max(recipients - 1, 0.0) / (self.day_fan_out - 1)
            return combine((1 - share, one), (share, some))
        return combine((1, some), (recipients - self.day_fan_out, self.large_delivery))

    def cores(self, load: Load, nodes: float) -> Cost:
        """CPU of each kind of process, in cores."""
        total = [(nodes, {**self.background, "kafka": 0.0}), (1, {"kafka": self.background["kafka"]}), (load.sockets, self.socket)]
        for action, rate in load.rates.items():
            if action != "sends":
                total.append((rate, self.actions[action].at(rate / nodes)))
        sends = load.rates.get("sends", 0.0)
        for share, recipients in load.mix or ((1.0, load.fan_out),):
            total.append((sends * share, self.message(recipients, sends / nodes)))
        total.append((load.records, self.record))
        return {part: used / 1e6 for part, used in combine(*total).items()}

    def node_memory(self, sockets: float) -> float:
        """Bytes of one node with so many sockets, after traffic; the kernel's for them beside it."""
        return self.node_bytes + sockets * (self.socket_bytes + self.kernel_bytes)


def load_of(users: float, assumed: Assumptions) -> Load:
    an_hour = lambda each: users * each / 3600
    sends = an_hour(assumed.messages)
    rates = {
        "sends": sends,
        "typing": sends * assumed.typing,
        "reads": sends * assumed.fan_out * assumed.reads,
        "reconnects": an_hour(assumed.reconnects),
        "pages": an_hour(assumed.pages + assumed.presence),
    }
    mix = tuple((share, recipients * assumed.online) for share, recipients in assumed.sizes)
    return Load(users, rates, assumed.fan_out, sends * assumed.with_absent, mix)


@dataclass(frozen=True)
class Plan:
    users: float
    load: Load
    nodes: int
    redis: int
    postgres: int
    kafka: int
    partitions: int
    cores: Cost
    node_sockets: float
    node_bytes: float


def plan(users: float, assumed: Assumptions, costs: Costs) -> Plan:
    load = load_of(users, assumed)
    free = 1 - assumed.headroom
    nodes = math.ceil(users / assumed.node_sockets)
    # More nodes make smaller batches, which need more CPU; the circle closes after a few turns.
    for _ in range(50):
        cores = costs.cores(load, nodes)
        wanted = math.ceil(cores["node"] / (assumed.node_cores * free))
        if wanted <= nodes:
            break
        nodes = wanted
    count = lambda part, each, copies=1.0: max(math.ceil(cores[part] * copies / (each * free)), 1)
    kafka = max(count("kafka", assumed.kafka_cores, assumed.replicas), math.ceil(assumed.replicas))
    return Plan(
        users, load, max(nodes, 2), count("redis", assumed.redis_cores), count("postgres", assumed.postgres_cores), kafka,
        # A consumer of a partition must keep up with it: a thousand records a second is little for any.
        max(12, math.ceil(load.records / 1000)), cores, users / max(nodes, 2), costs.node_memory(users / max(nodes, 2)),
    )


# --- the ten-node run --------------------------------------------------------------------------------


def agreement(results, costs: Costs) -> list[tuple[str, str, float, float]]:
    """(what, unit, the model's, measured) of the last ten-node run; empty if there was none."""
    runs = results.reports("ten-nodes")
    if not runs:
        return []
    run = runs[-1]
    rates = {action: run["per_second"].get(REPORTED[action], 0.0) for action in ACTIONS}
    sockets = run["silent"] + run["users"]
    fan_out = run["outcome"]["delivered"] / max(run["outcome"]["acked"], 1)
    predicted = costs.cores(Load(sockets, rates, fan_out), run["nodes"])
    spent = {part: used / run["seconds"] for part, used in seconds(run["cost"]).items()}
    rows = [("all server processes", "cores", sum(predicted.values()), sum(spent[part] for part in PARTS))]
    rows += [(part if part != "node" else f"{run['nodes']} nodes", "cores", predicted[part], spent[part]) for part in PARTS]
    memory = run["memory"]
    rows.append((f"memory of {run['nodes']} nodes", "MiB", (run["nodes"] * costs.node_bytes + sockets * costs.socket_bytes) / 2**20, memory["after"]["nodes"] / 2**20))
    return rows


def disagreements(rows) -> list[str]:
    """Of the sums that the model must tell right: those beyond the margin."""
    judged = [row for row in rows if row[0].startswith(("all ", "memory "))]
    return [what for what, _, model, measured in judged if abs(model / measured - 1) > MARGIN]


# --- the document ------------------------------------------------------------------------------------


def row(*cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def million(users: float) -> str:
    return f"{users / 1e6:g} million"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def write(docs: Path, results) -> None:
    docs.mkdir(parents=True, exist_ok=True)
    try:
        costs = Costs(results)
    except LookupError as missing:
        print(f"capacity: {missing}", file=sys.stderr)
        return
    assumed = Assumptions()
    plans = [plan(users, assumed, costs) for users in (1e6, 10e6, 100e6)]
    parts = [INTRO, answer(plans, assumed), assumptions(assumed), measured_costs(costs), sensitivity(costs, assumed), held_against(results, costs), LIMITS]
    (docs / "capacity.md").write_text("\n".join(parts))


INTRO = """\
# Capacity

<!-- Made by load-tests/capacity from docs/benchmarks/results.jsonl: change the model, load-tests/benchmark/capacity.py. -->

How many nodes, Redis shards, Postgres cores and Kafka brokers so many *connected* users need, from costs that were
[measured](benchmarks.md) on a small machine. For other numbers than these:

```sh
load-tests/capacity --users 3000000 --messages 40 --online 0.8     # --help lists every assumption
```
"""

LIMITS = """\
## What the model does not know

- **One Postgres primary is what the service drives today.** Where the table asks for more, the store has to be split by
  the conversation's slot, which every message id carries; that is designed and not built, and the cost of a sync that
  asks several shards is not in here. Until then: one larger primary, with the cores of the row *Postgres*.
- More than one Redis shard means Redis Cluster, whose cost for a publish is taken to be that of a single server.
- Disks and networks: WAL, checkpoints, the growth of tables, packets between machines, TLS. A synchronous standby makes
  sends wait longer and costs the primary little CPU.
- The kernel's work on packets that no process is charged for (*softirq* in [benchmarks.md](benchmarks.md)): it comes out
  of the head-room.
- Storms: a node that is lost sends its sockets to the others at once. With half of the CPU free a node takes as many
  handshakes in a second as its free cores allow at the cost of a connect above; [benchmarks.md](benchmarks.md) has
  the measured return of 10,000.
- Other processors: costs are of this kind of core. Run `load-tests/bench` on yours, then `load-tests/capacity`.
- Many cores in one process: the tests had two. That lanes and tasks spread evenly over more is assumed.
"""


def answer(plans: list[Plan], assumed: Assumptions) -> str:
    lines = ["## Answer", "", row("", *[f"{million(one.users)} connected" for one in plans]), row("---", *["--:"] * len(plans))]
    add = lambda name, value: lines.append(row(name, *[value(one) for one in plans]))
    add("messages a second", lambda one: whole(one.load.rates["sends"]))
    add("deliveries a second", lambda one: whole(one.load.rates["sends"] * one.load.fan_out))
    add("records to Kafka a second", lambda one: whole(one.load.records))
    add("connects a second", lambda one: whole(one.load.rates["reconnects"]))
    add(f"**nodes** of {assumed.node_cores:g} cores", lambda one: f"**{whole(one.nodes)}**")
    add("sockets of each, its memory with the kernel's", lambda one: f"{whole(one.node_sockets)}, {one.node_bytes / 2**30:.1f} GiB")
    add("**Redis shards**", lambda one: f"**{whole(one.redis)}**")
    add(f"**Postgres primaries** of {assumed.postgres_cores:g} cores", lambda one: f"**{whole(one.postgres)}**")
    add(f"**Kafka brokers** of {assumed.kafka_cores:g} cores, partitions", lambda one: f"**{whole(one.kafka)}**, {whole(one.partitions)}")
    for part, name in (("node", "cores busy: nodes"), ("redis", "Redis"), ("postgres", "Postgres"), ("kafka", "Kafka, one copy")):
        add(name, lambda one, part=part: whole(one.cores[part]) if one.cores[part] >= 10 else f"{one.cores[part]:.1f}")
    return "\n".join(lines) + "\n"


def assumptions(assumed: Assumptions) -> str:
    lines = ["## Assumptions", "", "All of the busiest hour. Heartbeats are the default's, one ping in 25 s of silence; the payload is 120 bytes.", "",
             row("`--option`", "value", "what"), row("---", "--:", "---")]
    lines += [row(f"`--{one.name.replace('_', '-')}`", number(getattr(assumed, one.name)), one.metadata["help"]) for one in fields(assumed)]
    lines += ["", f"From these: {assumed.fan_out:.1f} connected recipients of a message in the mean, and a record for {assumed.with_absent:.0%} of the messages."]
    return "\n".join(lines) + "\n"


def measured_costs(costs: Costs) -> str:
    lines = ["## Measured costs", "", "Microseconds of CPU, of one node and its services, without what they need for nothing.", "",
             row("", *PARTS), row("---", *["--:"] * len(PARTS))]
    add = lambda name, cost: lines.append(row(name, *[number(round(cost[part], 2)) for part in PARTS]))
    add("a node and its services with nothing to do, in a second", costs.background)
    add("an open socket, in a second", costs.socket)
    add("a connect by token, with subscription and presence", costs.connect)
    for rate, cost in costs.direct.points:
        add(f"a message to one recipient, {rate:,.0f} a second at a node", cost)
    for action, curve in costs.actions.items():
        what = f"a message to {costs.day_fan_out:.1f} recipients" if action == "sends" else {"reads": "a read receipt", "typing": "a typing indicator", "reconnects": "a reconnect with its sync", "pages": "a page", "syncs": "a sync"}[action]
        for rate, cost in curve.points:
            add(f"{what}, {rate:,.0f} a second", cost)
    add("a delivery more in a large group", costs.large_delivery)
    add("an offline record instead of a delivery, more than that", costs.record)
    lines += ["", f"Memory: {costs.node_bytes / 2**20:.0f} MiB of a node, and for each socket {number(costs.socket_bytes)} bytes of the node after traffic, "
              f"{number(costs.kernel_bytes)} of the kernel at the server's end, {number(costs.redis_bytes)} of Redis."]
    return "\n".join(lines) + "\n"


def sensitivity(costs: Costs, assumed: Assumptions) -> str:
    changes = [("as assumed", {})] + [
        (f"`--{name.replace('_', '-')}` {number(getattr(assumed, name))} → {number(value)}", {name: value}) for name, value in (
            ("messages", assumed.messages * 2), ("messages", assumed.messages / 2), ("direct", 0.9), ("online", 0.9), ("online", 0.2),
            ("reads", 1.0), ("reconnects", assumed.reconnects * 10), ("pages", assumed.pages * 5), ("presence", assumed.presence * 5),
            ("headroom", 0.3), ("node_cores", 16.0), ("node_sockets", 200_000.0),
        )
    ]
    lines = ["## What it depends on", "", "Ten million connected users, one assumption changed at a time (with `--direct` 0.9 the others shrink alike).", "",
             row("", "nodes", "their busy cores", "Redis shards", "busy cores", "Postgres primaries", "busy cores", "Kafka brokers"), row("---", *["--:"] * 7)]
    for name, change in changes:
        if "direct" in change:
            rest = (1 - change["direct"]) / (1 - assumed.direct)
            change = {**change, "small": assumed.small * rest, "medium": assumed.medium * rest}
        one = plan(10e6, replace(assumed, **change), costs)
        busy = {part: number(round(one.cores[part], 1)) for part in PARTS}
        lines.append(row(name, whole(one.nodes), busy["node"], whole(one.redis), busy["redis"], whole(one.postgres), busy["postgres"], whole(one.kafka)))
    return "\n".join(lines) + "\n"


def held_against(results, costs: Costs) -> str:
    rows = agreement(results, costs)
    lines = ["## Held against ten nodes", ""]
    if not rows:
        return "\n".join(lines + ["Not run yet: `load-tests/bench ten-nodes`.", ""])
    run = results.reports("ten-nodes")[-1]
    rates = ", ".join(f"{number(run['per_second'].get(REPORTED[action], 0.0))} {action}" for action in ACTIONS)
    lines += [
        f"`load-tests/bench ten-nodes`: {run['nodes']} nodes of one machine, each at an address of its own, with the same Postgres, Redis and "
        f"Kafka. {run['silent']:,} silent sockets and {run['users']:,} users whose conversations of 2 to 20 lie across all nodes; in a second "
        f"{rates}; measured for {run['seconds']:g} s. The model knows the costs of single nodes alone, and is asked for exactly that load.", "",
        row("", "unit", "model", "measured", "model / measured"), row("---", "---", "--:", "--:", "--:"),
    ]
    digits = lambda value: f"{value:.3f}" if value < 10 else whole(value)
    lines += [row(what, unit, digits(model), digits(measured), f"{model / measured:.2f}" if measured else "") for what, unit, model, measured in rows]
    wrong = disagreements(rows)
    verdict = f"It does not agree within {MARGIN:.0%} for: {', '.join(wrong)}." if wrong else f"The sum of all CPU and the memory agree within the margin of {MARGIN:.0%} that is asked for."
    missing = run["outcome"]["missing"] + run["outcome"]["doubled"] + run["outcome"]["unanswered"]
    return "\n".join(lines + ["", verdict + f" Of {run['outcome']['acked']:,} acknowledged messages {missing} were missing, doubled or unanswered at a recipient.", ""])


# --- the command -------------------------------------------------------------------------------------


def main() -> int:
    from .results import Results

    parser = argparse.ArgumentParser(prog="load-tests/capacity", description="Writes docs/capacity.md, or says what so many users need.")
    parser.add_argument("--users", type=float, metavar="N", help="connected at once: print what these need, and write nothing")
    parser.add_argument("--results", type=Path, default=REPO / "docs/benchmarks/results.jsonl", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="exit code 1 if the ten-node run is not within the margin; writes nothing")
    for one in fields(Assumptions):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=float, default=one.default, metavar="X", help=f"{one.metadata['help']} ({one.default:g})".replace("%", "%%"))
    options = parser.parse_args()
    results = Results(options.results)
    try:
        costs = Costs(results)
    except LookupError as missing:
        print(f"capacity: {missing}", file=sys.stderr)
        return 2
    if options.check:
        wrong = disagreements(agreement(results, costs))
        print("beyond the margin: " + ", ".join(wrong) if wrong else "within the margin")
        return 1 if wrong else 0
    assumed = Assumptions(**{one.name: getattr(options, one.name) for one in fields(Assumptions)})
    if options.users:
        print(answer([plan(options.users, assumed, costs)], assumed))
    else:
        write(options.results.parent.parent, results)
    return 0
