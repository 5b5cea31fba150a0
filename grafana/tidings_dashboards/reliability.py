"""Do clients get what they missed? Are the objectives kept? Are the nodes well?"""

from .parts import GREEN, RED, YELLOW, number, page as dashboard, series, sizes

BUDGETS = {"tidings:delivery_slow:ratio_rate": 0.01, "tidings:send_failed:ratio_rate": 0.001}


def burn(record, windows):
    return [(f'max by (cluster) ({record}{window}{{cluster=~"$cluster"}}) / {BUDGETS[record]}', f"{window} {{{{cluster}}}}")
            for window in windows]


def page():
    return dashboard("tidings-reliability", "Resume and reliability", "What clients missed and read again; the objectives; the nodes' health.", [
        ("Objectives", [
            series("Delivery: how fast the budget burns", "1: the budget of slow deliveries (1 % of a month's above 100 ms) is used up just at "
                   "the month's end. An alert pages at 14.4 over an hour, or 6 over six hours.", "short",
                   burn("tidings:delivery_slow:ratio_rate", ("5m", "1h", "6h")), span=12, limit=14.4, alert="TidingsDeliveryBudgetBurnsFast"),
            series("Sends: how fast the budget burns", "1: the budget of failed sends (0.1 % of a month's) is used up just at the month's end. "
                   "An alert pages at 14.4 over an hour, or 6 over six hours.", "short",
                   burn("tidings:send_failed:ratio_rate", ("5m", "1h", "6h")), span=12, limit=14.4, alert="TidingsSendBudgetBurnsFast"),
        ]),
        ("Resume", [
            number("Syncs", "Pages of sync asked for in a second.", "cps", "sum(rate(tidings_resumes_total{sel}[rate]))", decimals=1, span=6),
            number("Refused or failed", "Share of them.", "percentunit",
                   'sum(rate(tidings_resumes_total{sel,result=~"busy|failed"}[rate])) / sum(rate(tidings_resumes_total{sel}[rate]))',
                   steps=[(None, GREEN), (0.01, YELLOW), (0.05, RED)], alert="TidingsResumesRefused", decimals=1, span=6),
            number("Waiting", "Pages of sync that wait for their turn.", "short", "sum(tidings_resumes_waiting{sel})",
                   alert="TidingsResumesRefused", span=6),
            number("Gaps of the bus", "Times in the last hour that a node told all its sockets to read again, since events may have been "
                   "lost.", "short", "sum(increase(tidings_bus_gaps_total{sel}[1h]))", steps=[(None, GREEN), (1, YELLOW), (10, RED)],
                   alert="TidingsResyncStorm", decimals=0, span=6),
            series("Syncs by result", "Pages a second. reset: the client's copy was of another log; busy: too many resumed at once.", "cps",
                   [("sum by (result) (rate(tidings_resumes_total{sel}[rate]))", "{{result}}")], stack=True,
                   colors={"busy": "orange", "failed": RED}, alert="TidingsResumesRefused"),
            series("Syncs read together", "How many pages share a statement.", "short", sizes("tidings_resume_batch_pages")),
            series("What a sync costs the store", "How long 19 of 20 statements took: where the logs stand, what changed, what "
                   "conversations are now.", "s",
                   [('histogram_quantile(0.95, sum by (operation, le) (rate(tidings_store_query_seconds_bucket{sel,operation=~"sync_.*"}[rate])))',
                     "{{operation}}")], alert="TidingsStoreSlow"),
            series("Read from memory", "Share of the newest pages of histories (page) and of the logs of resumes (sync) that were found among "
                   "the recent messages in memory.", "percentunit",
                   [('sum by (kind) (rate(tidings_recent_reads_total{sel,outcome="hit"}[rate])) / sum by (kind) (rate(tidings_recent_reads_total{sel}[rate]))',
                     "{{kind}}")], span=12, top=1, alert="TidingsStoreSlow"),
            series("Recent messages in memory", "What the newest messages take that a node holds to answer from.", "bytes", [("tidings_recent_bytes{sel}", "{{instance}}")], span=12,
                   alert="TidingsMemoryRunsOut"),
            series("Told to read again", "In five minutes: gaps of the bus, each felt by all sockets of a node, and clients whose queue "
                   "stayed full.", "short",
                   [("sum(increase(tidings_bus_gaps_total{sel}[5m]))", "gaps of the bus"),
                    ("sum(increase(tidings_slow_consumers_total{sel}[5m]))", "slow consumers")], alert="TidingsResyncStorm"),
            series("Laggards", "Members who lack something.", "short", [("max(tidings_laggards_rows{sel})", "laggards")],
                   alert="TidingsLaggardsGrow"),
            series("Laggards overdue", "How long the most overdue of them has been due.", "s",
                   [("max(tidings_laggards_oldest_overdue_seconds{sel})", "overdue")], limit=120, alert="TidingsLaggardsOverdue"),
        ]),
        ("Nodes", [
            series("How late tasks wake", "99 of 100 woke less late than this. All that a node does waits as long.", "s",
                   [("histogram_quantile(0.99, sum by (instance, le) (rate(tidings_runtime_lag_seconds_bucket{sel}[rate])))", "{{instance}}")],
                   limit=0.25, alert="TidingsRuntimeLags"),
            series("Threads busy", "Share of the time that a node's threads were running tasks.", "percentunit",
                   [("rate(tidings_runtime_busy_seconds_total{sel}[rate]) / tidings_runtime_workers{sel}", "{{instance}}")], top=1,
                   alert="TidingsRuntimeLags"),
            series("Tasks", "Tasks alive: a session is one. And those that are ready and that no thread has taken yet.", "short",
                   [("tidings_runtime_tasks{sel}", "alive {{instance}}"), ("tidings_runtime_queued_tasks{sel}", "queued {{instance}}")]),
            series("Up for", "Time since a node started.", "s",
                   [("time() - tidings_process_start_time_seconds{sel}", "{{instance}}")], alert="TidingsNodeRestarts"),
            series("Releases", "Nodes by release and commit. Two for long: a roll-out is stuck.", "short",
                   [("count by (version, commit) (tidings_build_info{sel})", "{{version}} {{commit}}")], stack=True, decimals=0,
                   alert="TidingsReleasesMixed"),
            series("Unreadable envelopes", "In five minutes: what other nodes published and this one could not read.", "short",
                   [("sum by (instance) (increase(tidings_redis_undecodable_total{sel}[5m]))", "{{instance}}")],
                   alert="TidingsEnvelopesUnreadable"),
        ]),
    ])
