"""What is read from the reports: each figure with its gate, its aim, and what peers need on this kind of machine."""

from dataclasses import dataclass
from statistics import median
from typing import Callable

# Processes whose CPU is not the server's.
CLIENTS = ("loadgen", "idlers")


def server(by_process: dict) -> float:
    """Of all server-side processes: node, Postgres, Redis, Kafka."""
    return sum(value for name, value in by_process.items() if name not in CLIENTS)


def seconds(cost: dict) -> dict:
    """CPU seconds, user and system, by process."""
    return {name: cpu["user"] + cpu["system"] for name, cpu in cost["cpu"].items()}


@dataclass(frozen=True)
class Measure:
    name: str
    unit: str
    test: str
    value: Callable[[dict], float]
    # What it cost, where the figure is of CPU or of a rate.
    cost: Callable[[dict], dict] | None = None
    gate: float | None = None
    aim: float | None = None
    more_is_better: bool = False
    peers: str = ""
    # Of the same kind, said beside it: name and value.
    beside: tuple = ()

    def meets(self, value: float, limit: float) -> bool:
        return value >= limit if self.more_is_better else value <= limit


@dataclass(frozen=True)
class Figure:
    """Of all runs: the median, and between what they lay."""

    middle: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> "Figure":
        return cls(median(values), min(values), max(values), len(values))


def per_unit(measure: Measure, report: dict, what: Callable[[dict], float]) -> float:
    """Some other cost of the same stretch, in the measure's unit: both are divided by the same count."""
    cost = measure.cost(report)
    return measure.value(report) * what(cost) / max(server(seconds(cost)), 1e-9)


def softirq(cost: dict) -> float:
    return cost["machine"]["softirq"]


def others(cost: dict) -> float:
    """The share of the machine that processes used which are no part of this."""
    machine = cost["machine"]
    idle_of = max(machine["busy"] + machine["idle"], 1e-9)
    return max(machine["busy"] - machine["softirq"] - sum(seconds(cost).values()), 0.0) / idle_of


def reads(kind: str) -> Callable[[dict], dict]:
    return lambda report: next(reads for reads in report["reads"] if reads["kind"] == kind)


# What the node does at the store on its own account, whatever is read meanwhile.
UNASKED = ("ping", "claim_", "settle", "outbox_", "laggards_", "lacking", "postpone_", "hasten_", "expire_", "told", "receive", "send")


def queries(found: dict) -> list[dict]:
    return [query for name, query in found["store"].items() if not name.startswith(UNASKED)]


def database_ms(kind: str) -> Callable[[dict], float]:
    """Of one read: the time of all statements that it needed, with the wait for a connection."""
    def value(report: dict) -> float:
        found = reads(kind)(report)
        total = sum(query["calls"] * query["us_per_call"] for query in queries(found))
        return total / (found["per_second"] * found["seconds"]) / 1e3

    return value


def ms(path: str) -> Callable[[dict], float]:
    """A latency by its path in the report, such as `talk_storm.latency.ack.p99_us`."""
    def value(report: dict) -> float:
        for key in path.split("."):
            report = report[key]
        return report / 1e3

    return value


def cost_of(key: str) -> Callable[[dict], dict]:
    return lambda report: report[key]


def top(key: str, process: str | None = None) -> Callable[[dict], float]:
    """Of a map by process: one of them, or all of the server's."""
    return lambda report: report[key][process] if process else server(report[key])


def step(index: int, key: str) -> Callable[[dict], float]:
    return lambda report: server(report["steps"][index][key])


def reading(name: str, kind: str) -> list["Measure"]:
    cost = lambda report: reads(kind)(report)["cost"]
    return [
        Measure(f"{name}, database time", "ms", "history-recent", database_ms(kind), cost, gate=3, aim=1),
        Measure("the same without the recent messages that a node keeps", "ms", "history", database_ms(kind), cost),
    ]


KIB = 1024
MEASURES = [
    Measure("RSS of an idle socket, 15,000 of them, all application state, cluster mode", "KiB", "idle",
            lambda report: report["bytes_per_socket"]["node"] / KIB, gate=4, aim=2,
            peers="Socket.IO 14.9–18, Centrifugo 26.9 tuned / 33, naive Go 21, Tinode 48"),
    Measure("the same a minute after each received 20 messages and sent one of 6 KB", "KiB", "idle",
            lambda report: report["after_traffic"]["bytes_per_socket"]["node"] / KIB, gate=5, aim=2.5,
            peers="20: the usual Rust shape"),
    Measure("idle CPU of a socket in a second, heartbeats on, what the same processes need without sockets left out", "µs", "idle",
            top("us_per_socket_second_more"), gate=3, aim=1.5, peers="Centrifugo 4.7, 2.2 tuned (published)"),
    Measure("the same with that, shared out among 15,000 sockets", "µs", "idle", top("us_per_socket_second"), cost_of("cost"), gate=3, aim=1.5,
            beside=(("node alone", top("us_per_socket_second", "node")), ("Kafka, which has nothing to do", top("us_per_socket_second", "kafka")))),
    Measure("connect + JWT + subscribe + presence, 3,000 a second, cluster mode, all server CPU", "µs", "idle", step(0, "us_per_connect"),
            lambda report: report["steps"][0]["cost"], gate=300, aim=200, peers="Centrifugo with Redis 375, naive Go with Redis 382",
            beside=(("node alone", lambda report: report["steps"][0]["us_per_connect"]["node"]),)),
    Measure("durable one-to-one message, committed, delivered, proven, receipt stored; all server CPU at saturation, four unanswered a pair",
            "µs", "chat-full", top("us_per_message"), cost_of("cost"), gate=160, aim=100,
            peers="naive Go 1,270–1,715, Tinode 2,320; not durable: Centrifugo with Redis 136–155, Socket.IO with Redis 290–330"),
    Measure("its rate, 1,000 pairs, four unanswered each", "/s", "chat-full", lambda report: report["messages_per_second"], cost_of("cost"),
            gate=8000, aim=13000, more_is_better=True,
            peers="naive Go 1,350, Tinode 430; not durable: Centrifugo with Redis 7,500–9,700"),
    Measure("the same message while each pair waits for every answer; all server CPU", "µs", "chat",
            top("us_per_message"), cost_of("cost"), gate=160, aim=100),
    Measure("its rate, 1,000 pairs, one unanswered each", "/s", "chat", lambda report: report["messages_per_second"], cost_of("cost"),
            gate=8000, aim=13000, more_is_better=True),
    Measure("latency to the recipient at half of the rate with one unanswered each, open loop, p99", "ms", "half", ms("latency.delivery.p99_us"), cost_of("cost"),
            gate=40, aim=15, peers="p50 / p99: naive Go 2.7 / 22 at 670/s; not durable: Centrifugo with Redis 4.8 / 65 at 4,800/s",
            beside=(("p50", ms("latency.delivery.p50_us")), ("at, messages/s", lambda report: report["messages_per_second"]))),
    Measure("latency at 4,000/s, p99", "ms", "load-4000", ms("latency.delivery.p99_us"), cost_of("cost"),
            beside=(("p50", ms("latency.delivery.p50_us")),)),
    Measure("latency at 6,500/s, p99", "ms", "load-6500", ms("latency.delivery.p99_us"), cost_of("cost"),
            beside=(("p50", ms("latency.delivery.p50_us")),)),
    Measure("group of 1,000, one durable sender, 16 messages under way, CPU of a delivery at saturation, cluster mode", "µs", "group-1000",
            lambda report: server(report["steps"][0]["saturation"]["us_per_delivery"]),
            lambda report: report["steps"][0]["saturation"]["cost"], gate=10, aim=4,
            peers="Centrifugo with Redis 13, in memory 4.4; NATS 5.4; Tinode 30; naive Go 211",
            beside=(("deliveries/s", lambda report: report["steps"][0]["saturation"]["deliveries_per_second"]),)),
    Measure("single node (SQLite, in process): durable one-to-one message, CPU at saturation, four unanswered a pair", "µs", "single-full",
            top("us_per_message"), cost_of("cost"), gate=120, aim=70),
    Measure("its rate, four unanswered each", "/s", "single-full", lambda report: report["messages_per_second"], cost_of("cost"),
            gate=6000, aim=12000, more_is_better=True),
    Measure("the same while each pair waits for every answer", "µs", "single", top("us_per_message"), cost_of("cost"), gate=120, aim=70),
    Measure("its rate, one unanswered each", "/s", "single", lambda report: report["messages_per_second"], cost_of("cost"),
            gate=6000, aim=12000, more_is_better=True),
    Measure("10,000 sockets cut at once: all back and resumed while 500 messages/s go on", "s", "storm",
            lambda report: report["back_seconds"], cost_of("return_cost"), gate=30, aim=10,
            beside=(("CPU of a return, µs", top("us_per_return")),)),
    Measure("their acknowledgements in the storm, p99", "ms", "storm", ms("talk_storm.latency.ack.p99_us"), cost_of("return_cost"),
            gate=500, aim=150, beside=(("before the storm", ms("talk_before.latency.ack.p99_us")),)),
    *[measure for name, kind in (
        ("newest page of 50 of 1,000,000 messages", "newest page"),
        ("page of 50 in the middle", "page in the middle"),
        ("sync of 50 conversations with three new messages each", "sync of what is unread"),
        ("sync of 50 conversations without news", "sync without news"),
    ) for measure in reading(name, kind)],
]

CONTRACT = [
    Measure("messages a second on one instance", "/s", "chat", lambda report: report["messages_per_second"], gate=5000, more_is_better=True),
    Measure("sender to recipient while 6,500 a second are sent, p99", "ms", "load-6500", ms("latency.delivery.p99_us"), gate=100),
    Measure("memory of a node with 15,000 sockets, before and after traffic", "MiB", "idle",
            lambda report: max(report["rss_held"]["node"], report["after_traffic"]["rss"]["node"]) / 2**20, gate=2048),
    Measure("memory of a node at the peak of a storm of 10,000", "MiB", "storm", lambda report: report["rss_peak"]["node"] / 2**20, gate=2048),
    Measure("slowest kind of history or sync query", "ms", "history",
            lambda report: max(query["us_per_call"] for kind in report["reads"] for query in queries(kind)) / 1e3, gate=10),
]


def values(value: Callable[[dict], float], reports: list[dict]) -> list[float]:
    """Of the reports that have it: a run in which nothing arrived has no latency."""
    found = []
    for report in reports:
        try:
            found.append(value(report))
        except (KeyError, StopIteration, TypeError, ZeroDivisionError):
            continue
    return found


def figure(measure: Measure, reports: list[dict]) -> Figure | None:
    found = values(measure.value, reports)
    return Figure.of(found) if found else None
