"""The golden signals, and the figures that the service is judged by."""

from .parts import GREEN, RED, YELLOW, number, page as dashboard, quantiles, series

OK = 'sum(rate(tidings_sends_accepted_total{sel}[rate])) + sum(rate(tidings_sends_repeated_total{sel}[rate]))'
FAILED = 'sum(rate(tidings_sends_refused_total{sel,reason=~"busy|unavailable|internal"}[rate]))'


def page():
    return dashboard("tidings-overview", "Overview", "Is all well? Traffic, latency, errors and head-room at a glance.", [
        ("Now", [
            number("Nodes", "Nodes that answer Prometheus.", "short", 'sum(up{job="tidings",cluster=~"$cluster",instance=~"$node"})',
                   steps=[(None, RED), (1, GREEN)], alert="TidingsNodeDown"),
            number("Sockets open", "Sockets open on all nodes.", "short", "sum(tidings_sockets_open{sel})"),
            number("Messages", "Messages committed and acknowledged in a second.", "cps",
                   "sum(rate(tidings_sends_accepted_total{sel}[rate]))"),
            number("Delivered within 100 ms", "Share of the deliveries that took at most 100 ms, from the sender's frame to the "
                   "write to the recipient's socket. The objective: 99 %.", "percentunit",
                   'sum(rate(tidings_end_to_end_seconds_bucket{sel,le="0.1"}[rate])) / sum(rate(tidings_end_to_end_seconds_count{sel}[rate]))',
                   steps=[(None, RED), (0.95, YELLOW), (0.99, GREEN)], alert="TidingsDeliveryBudgetBurnsFast", decimals=2),
            number("Sends that succeed", "Share of the sends that did not fail by our fault. The objective: 99.9 %.", "percentunit",
                   f"({OK}) / ({OK} + {FAILED})", steps=[(None, RED), (0.99, YELLOW), (0.999, GREEN)],
                   alert="TidingsSendBudgetBurnsFast", decimals=2),
            number("Oldest batch", "Age of the oldest batch in the outbox. A batch stays for SETTLE_GRACE after its dispatch, "
                   "and half a minute where its node died.", "s", "max(tidings_outbox_oldest_seconds{sel})",
                   steps=[(None, GREEN), (60, YELLOW), (120, RED)], alert="TidingsOutboxOld", decimals=1),
            number("Laggards", "Members who lack something in a conversation, and of whom nobody has proven otherwise yet.", "short",
                   "max(tidings_laggards_rows{sel})", steps=[(None, GREEN), (1000, YELLOW)], alert="TidingsLaggardsOverdue"),
            number("Alerts firing", "Alerts of the chosen clusters that are firing now, and those of no cluster.", "short",
                   'count(ALERTS{alertname=~"Tidings.*",alertstate="firing",cluster=~"$cluster|"}) or vector(0)',
                   steps=[(None, GREEN), (1, RED)]),
        ]),
        ("Traffic and errors", [
            series("Messages by node", "Messages committed and acknowledged in a second.", "cps",
                   [("sum by (instance) (rate(tidings_sends_accepted_total{sel}[rate]))", "{{instance}}")], stack=True),
            series("Sockets by node", "Sockets open now.", "short",
                   [("sum by (instance) (tidings_sockets_open{sel})", "{{instance}}")], stack=True,
                   alert="TidingsSocketsNearLimit"),
            series("Refused sends", "Sends that stored nothing. busy, unavailable and internal are our fault and count against the "
                   "objective; the others are the clients'.", "cps",
                   [("sum by (reason) (rate(tidings_sends_refused_total{sel}[rate])) > 0 or "
                     'sum by (reason) (rate(tidings_sends_refused_total{sel,reason=~"busy|unavailable|internal"}[rate]))',
                     "{{reason}}")],
                   alert="TidingsSendBudgetBurnsFast"),
        ]),
        ("Latency", [
            series("Delivery", "From the sender's frame to the write to a recipient's socket, through commit, bus and queue.", "s",
                   quantiles("tidings_end_to_end_seconds"), limit=0.1, alert="TidingsDeliveryBudgetBurnsFast"),
            series("Store: a use case", "Every use case of the store, with the wait for a connection. The line is at 10 ms.", "s",
                   quantiles("tidings_store_query_seconds"), limit=0.01, alert="TidingsStoreSlow"),
            series("Kafka: until a record is confirmed", "From the hand-over of a record to the broker's confirmation by all replicas.", "s",
                   quantiles("tidings_kafka_produce_seconds"), alert="TidingsKafkaFailures"),
        ]),
        ("Head-room", [
            series("Memory by node", "Memory in RAM. A silent socket costs about 2 KiB of it, and more of the kernel's, which is not in here.", "bytes",
                   [("tidings_process_resident_bytes{sel}", "{{instance}}")], alert="TidingsMemoryRunsOut"),
            series("CPU by node", "Cores in use.", "short",
                   [("rate(tidings_process_cpu_seconds_total{sel}[rate])", "{{instance}}")], alert="TidingsRuntimeLags", decimals=2),
            series("Used of what there is", "The fullest node's share of its sockets, files, memory, database connections and the time "
                   "of its threads.", "percentunit",
                   [("max(tidings_sockets_open{sel} / tidings_sockets_limit{sel})", "sockets"),
                    ("max(tidings_process_open_fds{sel} / tidings_process_fd_limit{sel})", "files"),
                    ("max(tidings_process_memory_used_bytes{sel} / tidings_process_memory_limit_bytes{sel})", "memory"),
                    ('max(tidings_store_pool_connections{sel,state="in_use"} / ignoring (state) tidings_store_pool_limit{sel})',
                     "database connections"),
                    ("max(rate(tidings_runtime_busy_seconds_total{sel}[rate]) / tidings_runtime_workers{sel})", "threads")],
                   limit=0.85, top=1, alert="TidingsFilesRunOut"),
        ]),
    ])
