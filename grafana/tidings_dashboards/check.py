"""Runs all that dashboards and rules ask against a Prometheus that scrapes a cluster under load.

    python -m tidings_dashboards.check PROMETHEUS-URL

It waits until every query has an answer; exit code 1 if one is refused, or still has none in the end.
"""

import sys
import time

from . import lint, live

# How long a query may take to get its first answer: rates need some scrapes, and load that is rare must come.
WAIT = 75
SEEN = 60


def questions():
    """(where it stands, what asks it) of all there is."""
    for page in live.dashboards():
        for variable in page.get("templating", {}).get("list", []):
            if variable["type"] == "query":
                query = variable["query"]
                yield f"{page['title']}, ${variable['name']}", lambda server, q=query: server.label_values(q)
        for panel in live.panels(page):
            for target in panel.get("targets", []):
                query = target["expr"]
                yield (f"{page['title']}, {panel['title']!r}, {target['legendFormat']}",
                       lambda server, q=query: server.series(q, SEEN))
        for note in page.get("annotations", {}).get("list", []):
            # There may be nothing to note, but it must be possible to ask.
            yield f"{page['title']}, note {note['name']}", lambda server, q=note["expr"]: [server.series(q, SEEN)]
    for name, kind in lint.metrics().items():
        name += "_count" if kind == "histogram" else ""
        yield f"docs/metrics.md, {name}", lambda server, q=name: server.series(q, SEEN)


def main():
    server = live.Prometheus(sys.argv[1])
    open_ = list(questions())
    total, started = len(open_), time.monotonic()
    while open_:
        left = []
        for place, ask in open_:
            try:
                if not ask(server):
                    left.append((place, ask))
            except ValueError as error:
                sys.exit(f"{place}: {error}")
        open_ = left
        if open_ and time.monotonic() - started > WAIT:
            for place, _ in open_:
                print(f"{place}: no answer")
            sys.exit(1)
        time.sleep(1)
    bad = [rule for group in server.ask("rules")["groups"] for rule in group["rules"] if rule["health"] == "err"]
    for rule in bad:
        print(f"{rule['name']}: {rule['lastError']}")
    print(f"{total} queries have an answer", file=sys.stderr)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
