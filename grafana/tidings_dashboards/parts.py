"""What the dashboards are made of: panels with a unit, a description and a link to the runbook, each."""

import itertools
import re

from grafana_foundation_sdk.builders import common as look
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import common, dashboard

from .runbook import panel_id

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Which series are meant: put where a query says {sel}, or {sel,reason="busy"}.
SELECTOR = 'cluster=~"$cluster",instance=~"$node"'
GREEN, YELLOW, RED = "green", "yellow", "red"


def promql(query: str) -> str:
    """`{sel}` and `[rate]` are short for the variables' selector and for a window that suits the step."""
    return re.sub(r"\{sel\b", "{" + SELECTOR, query).replace("[rate]", "[$__rate_interval]")


def quantiles(metric: str, labels: str = "sel", by: str = "le") -> list[tuple[str, str]]:
    """The queries for the median, and for what the slowest twentieth and hundredth take at least."""
    rate = f"sum by ({by}) (rate({metric}_bucket{{{labels}}}[rate]))"
    return [(f"histogram_quantile({share}, {rate})", name)
            for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))]


def sizes(metric: str) -> list[tuple[str, str]]:
    """The queries for the mean of what comes in whole numbers, where a quantile's interpolation would mislead, and for
    the largest hundredth."""
    mean = f"sum(rate({metric}_sum{{sel}}[rate])) / sum(rate({metric}_count{{sel}}[rate]))"
    return [(mean, "mean"), quantiles(metric)[2]]


def _thresholds(steps):
    """`steps`: (from, colour), the first one from None."""
    made = [dashboard.Threshold(value=at, color=color) for at, color in steps]
    return board.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)


def _common(panel, title, about, unit, queries, span, height, alert, steps, instant=False):
    panel = (panel.title(title).description(about).unit(unit).datasource(SOURCE).span(span).height(height)
             .thresholds(_thresholds(steps or [(None, GREEN)])))
    for at, (query, legend) in enumerate(queries):
        target = prometheus.Dataquery().expr(promql(query)).legend_format(legend).ref_id(chr(ord("A") + at))
        panel = panel.with_target(target.instant() if instant else target.range())
    if alert:
        link = board.DashboardLink(f"Runbook: {alert}").type(dashboard.DashboardLinkType.LINK)
        panel = panel.links([link.url(f"/d/tidings-runbook/?viewPanel={panel_id(alert)}").target_blank(True)])
    return panel


def series(title, about, unit, queries, *, span=8, height=8, alert=None, limit=None, stack=False, colors=None,
           top=None, decimals=None):
    """Lines over time. `limit`: from where the area is red. `colors`: by legend. `top`: the axis' end."""
    steps = [(None, GREEN), (limit, RED)] if limit is not None else None
    panel = _common(timeseries.Panel(), title, about, unit, queries, span, height, alert, steps)
    panel = (panel.draw_style(common.GraphDrawStyle.LINE).line_width(1).show_points(common.VisibilityMode.NEVER)
             .line_interpolation(common.LineInterpolation.LINEAR).fill_opacity(35 if stack else 8).min(0)
             .color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
             .legend(look.VizLegendOptions().show_legend(True).display_mode(common.LegendDisplayMode.TABLE)
                     .placement(common.LegendPlacement.BOTTOM).calcs(["mean", "max", "lastNotNull"]))
             .tooltip(look.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
                      .sort(common.SortOrder.DESCENDING)))
    if stack:
        panel = panel.stacking(look.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if limit is not None:
        style = look.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.LINE_AND_AREA)
        panel = panel.thresholds_style(style)
    if top is not None:
        panel = panel.max(top)
    if decimals is not None:
        panel = panel.decimals(decimals)
    for legend, color in (colors or {}).items():
        value = {"mode": "fixed", "fixedColor": color}
        panel = panel.override_by_name(legend, [dashboard.DynamicConfigValue(id_val="color", value=value)])
    return panel


def number(title, about, unit, query, *, steps=None, alert=None, span=3, decimals=None, words=None):
    """One figure of now. `steps`: colours from a value on. `words`: what a value is called."""
    panel = _common(stat.Panel(), title, about, unit, [(query, title)], span, 4, alert, steps)
    panel = (panel.graph_mode(common.BigValueGraphMode.AREA).color_mode(common.BigValueColorMode.VALUE)
             .justify_mode(common.BigValueJustifyMode.AUTO).text_mode(common.BigValueTextMode.AUTO)
             .reduce_options(look.ReduceDataOptions().calcs(["lastNotNull"]).values(False)))
    if decimals is not None:
        panel = panel.decimals(decimals)
    if words:
        mapping = {value: dashboard.ValueMappingResult(text=text, color=color, index=at)
                   for at, (value, (text, color)) in enumerate(words.items())}
        panel = panel.mappings([dashboard.ValueMap(options=mapping)])
    return panel


def _variable(name, label, query):
    return (board.QueryVariable(name).label(label).query(query).datasource(SOURCE).multi(True).include_all(True)
            .all_value(".*").refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .current(dashboard.VariableOption(text=["All"], value=["$__all"], selected=True))
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC))


def _to_others():
    link = board.DashboardLink("Tidings").type(dashboard.DashboardLinkType.DASHBOARDS).tags(["tidings"])
    return link.as_dropdown(False).include_vars(True).keep_time(True)


def page(uid, title, about, rows):
    """A dashboard. `rows`: (title, panels)."""
    made = (board.Dashboard(f"Tidings / {title}").uid(uid).description(about).tags(["tidings"]).readonly()
            .refresh("15s").time("now-30m", "now").timezone("browser")
            .tooltip(dashboard.DashboardCursorSync.CROSSHAIR).link(_to_others())
            .with_variable(board.DatasourceVariable("datasource").label("Data source").type("prometheus"))
            .with_variable(_variable("cluster", "Cluster", "label_values(tidings_build_info, cluster)"))
            .with_variable(_variable("node", "Node", 'label_values(tidings_build_info{cluster=~"$cluster"}, instance)'))
            .annotation(board.AnnotationQuery().name("Node starts").enable(True).icon_color("blue").datasource(SOURCE)
                        .expr(promql("changes(tidings_process_start_time_seconds{sel}[$__rate_interval]) > 0"))))
    ids = itertools.count(1)
    for row, panels in rows:
        made = made.with_row(board.Row(row).id(next(ids)))
        for panel in panels:
            made = made.with_panel(panel.id(next(ids)))
    return made.build()
