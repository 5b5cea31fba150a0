"""docs/runbook.md as a dashboard, an entry a panel, so that a link from a panel leads to it within Grafana."""

import re
from functools import cache
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import text
from grafana_foundation_sdk.models import text as words

FILE = Path(__file__).parents[2] / "docs" / "runbook.md"


@cache
def entries() -> dict[str, str]:
    """The text below each alert's heading, by the alert's name, in the file's order."""
    parts = re.split(r"^### (Tidings\w+)\n", FILE.read_text(), flags=re.M)
    # A heading of a group of entries belongs to none.
    return {name: re.split(r"^## ", body, flags=re.M)[0].strip() for name, body in zip(parts[1::2], parts[2::2])}


def panel_id(alert: str) -> int:
    names = list(entries())
    assert alert in names, f"docs/runbook.md has no entry {alert}"
    return names.index(alert) + 1


def page():
    made = (board.Dashboard("Tidings / Runbook").uid("tidings-runbook").tags(["tidings"]).readonly()
            .description("What each alert means, what to look at, what to do: docs/runbook.md."))
    for name, body in entries().items():
        # Links to other files of the repository lead nowhere from here.
        body = re.sub(r"\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", body)
        made = made.with_panel(text.Panel().id(panel_id(name)).title(name).mode(words.TextMode.MARKDOWN)
                               .content(body).span(12).height(10))
    return made.build()
