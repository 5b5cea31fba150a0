"""The raw results: a file with one JSON object a line, `setup` (what it ran on) and `result` (one run of a test)."""

import json
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

# Of a report, what no table or plot needs.
LEFT_OUT = {"url", "receiver_url", "mean_us", "p95_us", "count", "fds_held", "rss_closed", "passed", "ends", "pss_bytes"}


def slim(value):
    if isinstance(value, dict):
        return {key: slim(inner) for key, inner in value.items() if key not in LEFT_OUT}
    if isinstance(value, list):
        return [slim(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


class Results:
    """All lines of one file, in the order in which they came; written through with each new one."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines = [json.loads(line) for line in lines if line.strip()]

    def of(self, test: str) -> list[dict]:
        return [line for line in self.lines if line["kind"] == "result" and line["test"] == test]

    def reports(self, test: str) -> list[dict]:
        return [line["report"] for line in self.of(test)]

    def tests(self) -> list[str]:
        return list(dict.fromkeys(line["test"] for line in self.lines if line["kind"] == "result"))

    def setups(self) -> list[dict]:
        return [line for line in self.lines if line["kind"] == "setup"]

    def has(self, test: str, repeat: int) -> bool:
        return any(line["repeat"] == repeat for line in self.of(test))

    def forget(self, tests) -> None:
        """The results of these tests, because they are made anew."""
        self.lines = [line for line in self.lines if line.get("test") not in tests]
        if not any(line["kind"] == "result" for line in self.lines):
            self.lines = []

    def setup(self, setup: dict) -> None:
        """Once for each state of machine and checkout."""
        if not any({**line, "at": 0} == {"kind": "setup", **setup, "at": 0} for line in self.setups()):
            self.add({"kind": "setup", "at": now(), **setup})

    def add(self, line: dict) -> None:
        self.lines.append(slim(line))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")
        temporary.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self.lines))
        temporary.replace(self.path)

    def rate(self, test: str) -> float | None:
        """Messages a second of one of the tests that others follow."""
        rates = [report["messages_per_second"] for report in self.reports(test)]
        return median(rates) if rates else None
