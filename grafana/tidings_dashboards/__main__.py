"""Writes each dashboard to the folder that is named, else to grafana/dashboards, as `<uid>.json`, and then the rules for
Kubernetes, too."""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from . import connections, dependencies, kubernetes, overview, reliability, runbook, write_path

PAGES = (overview, connections, write_path, dependencies, reliability, runbook)


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "dashboards"
    folder.mkdir(parents=True, exist_ok=True)
    for module in PAGES:
        page = module.page()
        text = json.dumps(json.loads(JSONEncoder().encode(page)), indent=2, sort_keys=True)
        (folder / f"{page.uid}.json").write_text(text + "\n")
    if len(sys.argv) == 1:
        kubernetes.FILE.write_text(kubernetes.text())


main()
