"""The standard set: each test is one run of loadgen against a fresh node on an empty store."""

from dataclasses import dataclass, field
from typing import Callable

from . import capacity

RATES = (100, 500, 1000, 2000, 4000, 6500, 8000, 10000, 12000, 14000, 16000, 20000, 24000)
# Open-loop rates that are figures of their own, measured as often as those of the main table.
MAIN_RATES = (4000, 6500)
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)
SIZES = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
STEPS = (1000, 4000, 7000, 10000, 13000, 16000, 19000)


@dataclass(frozen=True)
class Scale:
    """How large and how long; `quick` only shows that all works."""

    quick: bool = False

    def of(self, standard, quick):
        return quick if self.quick else standard

    @property
    def window(self) -> list[str]:
        return ["--warmup", self.of("3", "1"), "--seconds", self.of("8", "2"), "--settle", self.of("4s", "2s")]

    @property
    def pairs(self) -> list[str]:
        return ["--pairs", self.of("1000", "100")]


@dataclass(frozen=True)
class Test:
    name: str
    about: str
    # Of loadgen, but for addresses and processes; gets the scale and the rate of the test that it follows.
    command: Callable[[Scale, float], list[str]]
    cluster: bool = True
    jwt: bool = False
    settings: dict = field(default_factory=dict)
    # A point of a curve, measured less often than the figures of the table.
    curve: bool = False
    # The test, of LIMITS, from whose rate its own follows, and which goes before.
    follows: str | None = None
    # False: it says nothing about a server at this saturation.
    fits: Callable[[float], bool] = lambda saturation: True
    # The same before it, on the same node, for so many seconds: at low rates the first use of each connection and
    # statement would otherwise be a good part of what is measured.
    warm: tuple[int, int] | None = None
    # Faults that begin so are none here.
    forgiven: tuple = ()


def chat(name: str, about: str, *, rate: Callable[[float], float] | None = None, more: list[str] | None = None, **other) -> Test:
    def command(scale: Scale, saturation: float) -> list[str]:
        pace = ["--rate", f"{rate(saturation):.0f}"] if rate else []
        return ["chat", *scale.pairs, *scale.window, *pace, *(more or [])]

    return Test(name, about, command, **other)


def half(saturation: float) -> float:
    return max(round(saturation / 2, -2), 100)


def idle(scale: Scale, _saturation: float) -> list[str]:
    # Held for one turn of the heartbeats: each socket is pinged once.
    return ["idle", "--sockets", scale.of("15000", "1000"), "--rate", "3000", "--before", scale.of("20s", "2s"), "--hold", scale.of("25s", "3s"),
            "--after-traffic", "--rest", scale.of("60s", "2s")]


def steps(scale: Scale, _saturation: float) -> list[str]:
    sockets = scale.of(STEPS, (200, 500, 1000))
    return ["idle", "--steps", ",".join(map(str, sockets)), "--rate", "1500", "--hold", "1s"]


def background(scale: Scale, _saturation: float) -> list[str]:
    return ["idle", "--sockets", "10", "--hold", scale.of("20s", "3s")]


def storm(scale: Scale, _saturation: float) -> list[str]:
    return ["storm", "--sockets", scale.of("10000", "500"), "--rate", scale.of("500", "100"), "--before", scale.of("8s", "2s")]


def groups(sizes, *more: str) -> Callable[[Scale, float], list[str]]:
    def command(scale: Scale, _saturation: float) -> list[str]:
        some = sizes if not scale.quick or len(sizes) == 1 else sizes[:2]
        return ["group", "--sizes", ",".join(map(str, some)), "--share", "0", *scale.window, *more]

    return command


def history(scale: Scale, _saturation: float) -> list[str]:
    return ["history", "--messages", scale.of("1000000", "20000"), "--seconds", scale.of("5", "1"), "--database", "{database}"]


# How fast a node goes while each pair waits for every answer, and with all it can.
LIMITS = ("chat", "chat-full")


def overload(factor: float) -> Test:
    def command(scale: Scale, saturation: float) -> list[str]:
        window = ["--warmup", scale.of("3", "1"), "--seconds", scale.of("10", "4"), "--settle", scale.of("6s", "4s")]
        return ["overload", *scale.pairs, *window, "--saturation", f"{saturation:.0f}", "--factor", str(factor)]

    return Test(f"overload-{factor}", f"{factor} times the saturation, on schedule, whatever is refused", command,
                curve=True, follows="chat-full", forgiven=("nothing was refused",) if factor <= 1.25 else ())


def at_rate(rate: int) -> Test:
    return chat(f"load-{rate}", f"one to one, {rate:,} messages/s on schedule", rate=lambda _: rate, follows="chat-full",
                curve=rate not in MAIN_RATES, fits=lambda saturation: rate <= saturation)


def alone(action: str, rate: int) -> Test:
    """What one kind of action costs by itself, among users of the mixed day: what the capacity model is made from."""
    def command(scale: Scale, _saturation: float) -> list[str]:
        rates = {name: 0 for name in capacity.ACTIONS} | {action: rate}
        if action in capacity.BESIDE:
            rates["sends"] = capacity.BESIDE[action]
        words = [word for name, rate in rates.items() for word in (f"--{name}", str(rate))]
        return ["day", "--seconds", scale.of("12", "2"), "--settle", "2s", *words]

    beside = f" beside {capacity.BESIDE[action]} sends" if action in capacity.BESIDE else " alone"
    return Test(f"day-{action}-{rate}", f"{rate} {action} a second{beside}, 500 users in 200 groups of 2 to 20", command, curve=True, warm=(5, 1),
                forgiven=("nothing was acknowledged",) if action not in ("sends", *capacity.BESIDE) else ())


STANDARD = [
    chat("chat", "one to one, 1,000 pairs, as fast as the node goes while each pair waits for every answer"),
    chat("chat-full", "the same with four unanswered messages a pair: all the node can", more=["--in-flight", "4"]),
    Test("idle", "15,000 sockets by token, silent for a turn of the heartbeats; then 20 messages to each and 6 KB from each; then a minute", idle, jwt=True),
    chat("half", "one to one, half as many as `chat` reached, on schedule", rate=half, follows="chat"),
    *[at_rate(rate) for rate in RATES],
    Test("group-1000", "one writer in a group of 1,000, 16 messages under way: all the node can", groups((1000,), "--in-flight", "16")),
    chat("single", "one to one on a single node: SQLite, everything in process; each pair waits for every answer", cluster=False),
    chat("single-full", "the same with four unanswered messages a pair", more=["--in-flight", "4"], cluster=False),
    Test("storm", "10,000 sockets cut at once, three conversations each with three messages to read, 500 messages/s of others", storm),
    Test("history", "pages of 50 of a conversation of 1,000,000 messages, syncs of 50 conversations, all by the database", history,
         settings={"RECENT_CACHE_BYTES": "0"}),
    Test("history-recent", "the same with the recent messages that a node keeps", history),
    Test("steps", "sockets in steps up to 19,000", steps, curve=True),
    Test("groups", "one writer in groups of 2 to 1,000, as fast as all have it", groups(SIZES), curve=True),
    *[overload(factor) for factor in FACTORS],
    *[alone(action, rate) for action, rates in capacity.ALONE.items() for rate in rates],
    Test("background", "a node with ten silent sockets: what it needs for nothing", background, curve=True),
    chat("absent", "one to one, nobody is there to read: all goes to Kafka", rate=lambda _: 500, more=["--absent"],
         settings={"NODE_LEASE": "2s"}, curve=True),
]
BY_NAME = {test.name: test for test in STANDARD}
