"""The dashboards of Tidings as code. `python -m tidings_dashboards` writes them to grafana/dashboards."""
