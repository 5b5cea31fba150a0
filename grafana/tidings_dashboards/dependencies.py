"""What a node leans on: the store, Redis, Kafka; and the HTTP routes that others lean on."""

from .parts import GREEN, RED, number, page as dashboard, quantiles, series

UP = {"0": ("down", RED), "1": ("up", GREEN)}


def part(name, title, about, alert):
    return number(title, about, "short", f'min(tidings_part_up{{sel,part="{name}"}})', steps=[(None, RED), (1, GREEN)], span=4,
                  alert=alert, words=UP)


def page():
    return dashboard("tidings-dependencies", "Dependencies", "The store, Redis, Kafka, and the API.", [
        ("Now", [
            part("store", "Store", "Whether the store answered the last statement of every node.", "TidingsStoreDown"),
            part("bus", "Bus", "Whether every node's connection to Redis is whole.", "TidingsBusDown"),
            part("offline", "Offline sink", "Whether Kafka (or the file) takes records from every node.", "TidingsOfflineSinkDown"),
            number("Synchronous standby", "Whether commits wait for a synchronous standby. Without one, what is acknowledged is lost if "
                   "the database's machine is.", "short", "min(tidings_store_synchronous_standby{sel})", span=4,
                   alert="TidingsSynchronousStandbyLost", words={"0": ("none", "text"), "1": ("there", GREEN)}),
            number("Slowest probe of Redis", "From a node's publish to itself to the arrival, the slowest node's.", "s",
                   "max(tidings_redis_probe_lag_seconds{sel})", steps=[(None, GREEN), (1, RED)], span=4, alert="TidingsBusProbeLate"),
            number("Records unconfirmed", "Records that Kafka has not confirmed yet.", "short", "sum(tidings_kafka_queue_records{sel})",
                   span=4, alert="TidingsKafkaFailures"),
        ]),
        ("Store", [
            series("Use cases, 95 %", "How long 19 of 20 took, for those that were used; with the wait for a connection.", "s",
                   [("topk(10, histogram_quantile(0.95, sum by (operation, le) (rate(tidings_store_query_seconds_bucket{sel}[rate]))) > 0)",
                     "{{operation}}")], alert="TidingsStoreSlow", span=12, height=10),
            series("Use cases a second", "How often each was used.", "cps",
                   [("topk(10, sum by (operation) (rate(tidings_store_query_seconds_count{sel}[rate])) > 0)", "{{operation}}")],
                   stack=True, span=12, height=10),
            series("Time in the store", "Connections busy on average: seconds of use cases in a second, the ten that take most.", "short",
                   [("topk(10, sum by (operation) (rate(tidings_store_query_seconds_sum{sel}[rate])) > 0)", "{{operation}}")],
                   stack=True, height=10, span=6),
            series("Connections of the pool", "In use and idle, on the fullest node, and the limit (DB_POOL_SIZE). At the limit, "
                   "statements wait.", "short",
                   [('max(tidings_store_pool_connections{sel,state="in_use"})', "in use"),
                    ('max(tidings_store_pool_connections{sel,state="idle"})', "idle"),
                    ("max(tidings_store_pool_limit{sel})", "limit")], colors={"limit": RED}, height=10, span=6, alert="TidingsStorePoolFull"),
            series("Wait for a connection", "How long statements of the reading pool waited before they could begin. Postgres only.", "s",
                   quantiles("tidings_store_pool_wait_seconds"), height=10, span=6, alert="TidingsStorePoolFull"),
            series("Failures of the store", "Statements that failed, a second. conflict is tried again; unavailable becomes 503.", "cps",
                   [("sum by (reason) (rate(tidings_store_failures_total{sel}[rate]))", "{{reason}}")], height=10, span=6, alert="TidingsStoreFailures"),
        ]),
        ("Replica", [
            series("Pages asked of the replica", "Pages of old history, a second. All but those served were then read from the primary: "
                   "the replica lags, lacks a change, or is away.", "cps",
                   [("sum by (outcome) (rate(tidings_store_replica_reads_total{sel}[rate]))", "{{outcome}}")], span=24),
        ]),
        ("Redis", [
            series("Probe", "From a node's publish to itself to its arrival.", "s",
                   [("tidings_redis_probe_lag_seconds{sel}", "{{instance}}")], limit=1, alert="TidingsBusProbeLate"),
            series("Publish", "The publishes of one dispatch, with the bus's replies.", "s", quantiles("tidings_publish_seconds"),
                   alert="TidingsBusProbeLate"),
            series("Commands", "Pipelines of commands on keys (presence, leases, tickets) to one master, with the wait for a connection.", "s",
                   quantiles("tidings_redis_command_seconds"), alert="TidingsBusProbeLate"),
            series("Subscriptions", "Channels that nodes are subscribed to: one for each of their users, and a few of their own.", "short",
                   [("tidings_redis_subscriptions{sel}", "{{instance}}")], span=12, alert="TidingsBusDown"),
            series("Reconnects and lost leases", "In five minutes. A lost lease: the node was not heard for longer than NODE_LEASE, and "
                   "registered its sessions again.", "short",
                   [("sum by (instance) (increase(tidings_redis_reconnects_total{sel}[5m]))", "reconnects {{instance}}"),
                    ("sum by (instance) (increase(tidings_redis_lease_losses_total{sel}[5m]))", "leases {{instance}}")],
                   span=12, alert="TidingsLeaseLost"),
        ]),
        ("Kafka", [
            series("Until a record is confirmed", "From the hand-over of a record to the confirmation by all replicas.", "s",
                   quantiles("tidings_kafka_produce_seconds"), alert="TidingsKafkaFailures"),
            series("Unconfirmed records", "Handed over, and not yet confirmed.", "short",
                   [("sum by (instance) (tidings_kafka_queue_records{sel})", "{{instance}}")], alert="TidingsKafkaFailures"),
            series("Failures", "Records that were not confirmed, a second. They stay with the laggards, and are handed over later.", "cps",
                   [("sum by (reason) (rate(tidings_kafka_failures_total{sel}[rate]))", "{{reason}}")], alert="TidingsKafkaFailures"),
        ]),
        ("API", [
            series("Requests by route", "A second, the ten busiest.", "reqps",
                   [('topk(10, sum by (method, route) (rate(tidings_http_requests_total{sel,route!~"/(metrics|ready|health)"}[rate])) > 0)', "{{method}} {{route}}")],
                   stack=True, height=10),
            series("Slowest routes, 95 %", "How long 19 of 20 requests took, of the ten slowest routes.", "s",
                   [("topk(10, histogram_quantile(0.95, sum by (method, route, le) (rate(tidings_http_request_seconds_bucket{sel,route!~\"/(metrics|ready|health)\"}[rate]))) > 0)",
                     "{{method}} {{route}}")], height=10, alert="TidingsStoreSlow"),
            series("Answers by status", "A second. 5xx is our fault.", "reqps",
                   [('sum by (status) (rate(tidings_http_requests_total{sel,status!="1xx"}[rate]))', "{{status}}")],
                   colors={"5xx": RED, "2xx": GREEN, "4xx": "yellow", "3xx": "blue"}, height=10, alert="TidingsSendBudgetBurnsFast"),
        ]),
    ])
