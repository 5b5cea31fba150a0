"""What can be told of dashboards, rules and runbook without running anything. Exit code 1 if something is wrong.

    python -m tidings_dashboards.lint
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from . import kubernetes, live, runbook

ROOT = Path(__file__).parents[2]
UNITS = {"short", "cps", "reqps", "s", "bytes", "Bps", "percentunit"}
# Prometheus' own.
OTHERS = {"up", "ALERTS"}

faults: list[str] = []


def fault(place: str, what: str):
    faults.append(f"{place}: {what}")


def metrics() -> dict[str, str]:
    """Each metric's kind, by its name, of docs/metrics.md, which a test holds against the code."""
    rows = re.findall(r"^\| `(tidings_\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(), flags=re.M)
    assert rows, "docs/metrics.md has no rows"
    return dict(rows)


def names(query: str) -> set[str]:
    """The metrics that a query asks for, as they are called on the wire."""
    query = re.sub(r'"[^"]*"', "", query)
    return set(re.findall(r"\b(?:tidings[_:][\w:]+|up\b|ALERTS\b)", query))


def judge(place: str, query: str, known: dict[str, str], records: set[str]) -> set[str]:
    """Every metric must be known, and of a kind that suits what is done with it; returns the known ones' names."""
    used = set()
    for name in names(query):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if known.get(base) == "histogram" and base != name:
            used.add(base)
        elif name in known and known[name] != "histogram":
            used.add(name)
            if known[name] == "counter" and not re.search(rf"(rate|increase)\({name}\b", query):
                fault(place, f"{name} is a counter: take its rate")
        elif name not in records | OTHERS:
            fault(place, f"there is no metric {name}")
    return used


def generated():
    """The committed files are what the generator writes."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "tidings_dashboards", folder], check=True)
        new = {file.name: file.read_text() for file in Path(folder).iterdir()}
    old = {file.name: file.read_text() for file in live.DASHBOARDS.iterdir()}
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) != old.get(name):
            fault(f"grafana/dashboards/{name}", "is not what the generator writes: run scripts/dashboards generate")
    if kubernetes.FILE.read_text() != kubernetes.text():
        fault("k8s/production/rules.yaml", "is not what the generator writes: run scripts/dashboards generate")


def dashboard(page: dict, known, records) -> set[str]:
    used = set()
    entries = len(runbook.entries())
    if not page.get("description"):
        fault(page["title"], "has no description")
    titles = [panel["title"] for panel in live.panels(page)]
    for title in {title for title in titles if titles.count(title) > 1}:
        fault(page["title"], f"has two panels {title!r}")
    ids = [panel["id"] for panel in page["panels"]]
    if len(ids) != len(set(ids)):
        fault(page["title"], "has two panels with one id")
    for panel in live.panels(page):
        place = f"{page['title']}, {panel['title']!r}"
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            fault(place, "goes beyond the grid")
        if panel["type"] == "text":
            continue
        if len(panel.get("description", "")) < 10 or not panel["description"].endswith("."):
            fault(place, "has no description")
        if panel["fieldConfig"]["defaults"].get("unit") not in UNITS:
            fault(place, "has no known unit")
        colours = len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"])
        counts_alerts = any("ALERTS" in target["expr"] for target in panel.get("targets", []))
        if colours > 1 and not panel.get("links") and not counts_alerts:
            fault(place, "warns by its colour, and names no entry of the runbook")
        if not panel.get("targets"):
            fault(place, "asks nothing")
        for link in panel.get("links", []):
            number = re.fullmatch(r"/d/tidings-runbook/\?viewPanel=(\d+)", link["url"])
            if not number or not 1 <= int(number[1]) <= entries:
                fault(place, f"links to {link['url']}, which is no entry of the runbook")
        for target in panel.get("targets", []):
            if not target.get("legendFormat"):
                fault(place, "has a series without a name")
            used |= judge(place, target["expr"], known, records)
    return used


def rules(known) -> tuple[set[str], set[str]]:
    """The recorded series, and the metrics used."""
    groups = [group for file in ("rules.yml", "alerts.yml")
              for group in yaml.safe_load((ROOT / "prometheus" / file).read_text())["groups"]]
    every = [rule for group in groups for rule in group["rules"]]
    records = {rule["record"] for rule in every if "record" in rule}
    alerts = {rule["alert"]: rule for rule in every if "alert" in rule}
    used = set()
    for rule in every:
        used |= judge(rule.get("record") or rule["alert"], rule["expr"], known, records)
    entries = runbook.entries()
    for name in alerts.keys() ^ entries.keys():
        fault(name, "stands in only one of prometheus/alerts.yml and docs/runbook.md")
    for name, rule in alerts.items():
        if rule["annotations"].get("runbook_url") != f"docs/runbook.md#{name.lower()}":
            fault(name, f"its runbook_url must be docs/runbook.md#{name.lower()}")
        if rule["labels"].get("severity") not in ("page", "ticket"):
            fault(name, "its severity is neither page nor ticket")
        for part in ("Means", "Look", "Do"):
            if f"**{part}**: " not in entries.get(name, ""):
                fault(name, f"its entry in the runbook does not say {part!r}")
    tests = yaml.safe_load((ROOT / "prometheus" / "tests.yml").read_text())["tests"]
    firing = {test["name"] for test in tests
              if any(f'alertname="{test["name"]}"' in sample["labels"]
                     for check in test["promql_expr_test"] for sample in check["exp_samples"])}
    for name in alerts.keys() - firing:
        fault(name, "has no test in prometheus/tests.yml in which it fires")
    calm = next(test for test in tests if test["name"] == "calm")
    there = set().union(*(names(series["series"]) for series in calm["input_series"]))
    for name, rule in alerts.items():
        missing = {each for each in names(rule["expr"]) if ":" not in each} - there
        if missing:
            fault(name, f"the calm of prometheus/tests.yml lacks {', '.join(missing)}, so it cannot fire there")
    return records, used


def main():
    known = metrics()
    generated()
    records, used = rules(known)
    for page in live.dashboards():
        used |= dashboard(page, known, records)
    for name in sorted(known.keys() - used):
        fault(name, "is on no dashboard and in no rule")
    for file in (ROOT / "grafana" / "provisioning").rglob("*.yaml"):
        yaml.safe_load(file.read_text())
    for line in faults:
        print(line)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
