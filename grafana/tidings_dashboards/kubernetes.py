"""The rules and alerts as the Prometheus operator wants them, the text of prometheus/ unchanged within."""

from pathlib import Path
from textwrap import indent

ROOT = Path(__file__).parents[2]
FILE = ROOT / "k8s/production/rules.yaml"

HEAD = """\
# Written by `scripts/dashboards generate`, of prometheus/rules.yml and prometheus/alerts.yml: change these.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tidings
spec:
  groups:
"""


def text() -> str:
    files = ((ROOT / "prometheus" / name).read_text() for name in ("rules.yml", "alerts.yml"))
    groups = (file.partition("\ngroups:\n")[2].strip("\n") for file in files)
    return HEAD + "\n\n".join(indent(each, "  ") for each in groups) + "\n"
