"""A Prometheus that scrapes a cluster, and the queries of the committed dashboards as Grafana would ask them."""

import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

DASHBOARDS = Path(__file__).parents[1] / "dashboards"
# In place of Grafana's variables. The window suits a Prometheus that scrapes every second.
VARIABLES = {"$cluster": ".*", "$node": ".*", "$__rate_interval": "10s"}


def dashboards() -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))]


def panels(dashboard: dict) -> list[dict]:
    """Without rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


class Prometheus:
    def __init__(self, url: str, end: float | None = None):
        """`end`: what counts as now, in seconds since the epoch."""
        self.url, self.end = url, end

    def ask(self, path: str, **parameters):
        """The answer's data; ValueError with Prometheus' own words where it refuses."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error).get("error", str(error))) from None

    def series(self, query: str, seconds: int, step: float = 1) -> list[tuple[dict, list[float], list[float]]]:
        """(labels, times, values) of each series that has a finite value within the last `seconds`."""
        end = self.end or time.time()
        data = self.ask("query_range", query=filled(query), start=end - seconds, end=end, step=step)
        found = []
        for series in data["result"]:
            points = [(at, float(value)) for at, value in series["values"]]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            if points:
                found.append((series["metric"], *map(list, zip(*points))))
        return found

    def label_values(self, query: str) -> list[str]:
        """Of a variable's `label_values(selector, label)`."""
        selector, label = re.fullmatch(r"label_values\((.*), *(\w+)\)", query).groups()
        return self.ask(f"label/{label}/values", **{"match[]": filled(selector)})
