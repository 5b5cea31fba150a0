"""The way of a message: from a send to its commit, to the bus, to the socket, to its proof."""

from .parts import GREEN, RED, YELLOW, number, page as dashboard, quantiles, series, sizes


def stages(share):
    return [(f"histogram_quantile({share}, sum by (stage, le) (rate(tidings_stage_seconds_bucket{{sel}}[rate])))", "{{stage}}")]


def page():
    return dashboard("tidings-write-path", "Write path and dispatch", "A message's way: commit, publish, write, proof; and what is left behind.", [
        ("Now", [
            number("Messages", "Messages committed and acknowledged in a second.", "cps",
                   "sum(rate(tidings_sends_accepted_total{sel}[rate]))", span=4),
            number("Messages per commit", "How many messages share a commit, on average. It grows by itself under load.", "short",
                   "sum(rate(tidings_send_batch_messages_sum{sel}[rate])) / sum(rate(tidings_send_batch_messages_count{sel}[rate]))",
                   span=4, decimals=1),
            number("Events per message", "Events published for each message: its members.", "short",
                   "sum(rate(tidings_dispatch_published_total{sel}[rate])) / sum(rate(tidings_sends_accepted_total{sel}[rate]))",
                   span=4, decimals=1),
            number("Batches in the outbox", "Committed and not yet settled; each stays for SETTLE_GRACE.", "short",
                   "max(tidings_outbox_rows{sel})", span=4, alert="TidingsOutboxOld"),
            number("Oldest of them", "Age of the oldest batch in the outbox.", "s", "max(tidings_outbox_oldest_seconds{sel})",
                   steps=[(None, GREEN), (60, YELLOW), (120, RED)], span=4, alert="TidingsOutboxOld", decimals=1),
            number("Laggard most overdue", "How long the laggard most overdue has been due.", "s",
                   "max(tidings_laggards_oldest_overdue_seconds{sel})", steps=[(None, GREEN), (30, YELLOW), (120, RED)], span=4,
                   alert="TidingsLaggardsOverdue", decimals=1),
        ]),
        ("Commit", [
            series("Sends by outcome", "A second. Repeated: answered with the first message of the same client_message_id.", "cps",
                   [("sum(rate(tidings_sends_accepted_total{sel}[rate]))", "accepted"),
                    ("sum(rate(tidings_sends_repeated_total{sel}[rate]))", "repeated"),
                    ("sum(rate(tidings_sends_refused_total{sel}[rate]))", "refused")],
                   alert="TidingsSendBudgetBurnsFast"),
            series("Messages per batch", "How many messages share a statement and a commit.", "short",
                   sizes("tidings_send_batch_messages")),
            series("Commit", "One write batch: its statement, and the commit that has it on the disk.", "s",
                   quantiles("tidings_commit_seconds"), alert="TidingsStoreSlow"),
        ]),
        ("Stages", [
            series("Stages, median", "Received to committed, committed to published, queued to written, written to proven.", "s", stages(0.5)),
            series("Stages, slowest hundredth", "The same, of the slowest hundredth. The longest line is what makes deliveries slow.", "s",
                   stages(0.99), alert="TidingsDeliveryBudgetBurnsFast"),
            series("Delivery", "From the sender's frame to the write to a recipient's socket.", "s",
                   quantiles("tidings_end_to_end_seconds"), limit=0.1, alert="TidingsDeliveryBudgetBurnsFast"),
        ]),
        ("Dispatch", [
            series("Events published", "A second: one for each member of the conversation.", "cps",
                   [("sum by (instance) (rate(tidings_dispatch_published_total{sel}[rate]))", "{{instance}}")], stack=True),
            series("Publish", "The publishes of one dispatch, with the bus's replies.", "s", quantiles("tidings_publish_seconds"),
                   alert="TidingsBusProbeLate"),
            series("Outbox", "Write batches not yet settled.", "short", [("max by (cluster) (tidings_outbox_rows{sel})", "batches {{cluster}}")],
                   alert="TidingsOutboxOld"),
        ]),
        ("Proof and Reconcile", [
            series("Proofs", "A second: runs that moved a member's watermark, and receipts told to senders. Dropped ones had no room, "
                   "and are found again by Reconcile.", "cps",
                   [("sum(rate(tidings_runs_settled_total{sel}[rate]))", "runs settled"),
                    ("sum(rate(tidings_receipts_told_total{sel}[rate]))", "receipts told"),
                    ("sum(rate(tidings_proofs_dropped_total{sel}[rate]))", "proofs dropped")]),
            series("Laggards looked after", "A second, by what was done: published again, told to resync, handed to the offline sink, "
                   "or postponed because nothing could be known.", "cps",
                   [("sum by (outcome) (rate(tidings_laggards_total{sel}[rate]))", "{{outcome}}")], stack=True,
                   alert="TidingsLaggardsOverdue"),
            series("Laggards", "Members who lack something in a conversation.", "short",
                   [("max by (cluster) (tidings_laggards_rows{sel})", "members {{cluster}}")], alert="TidingsLaggardsGrow"),
            series("Offline records", "For users without a socket, a second: confirmed by Kafka (or by fsync), or failed.", "cps",
                   [("sum by (outcome) (rate(tidings_offline_records_total{sel}[rate]))", "{{outcome}}")],
                   colors={"failed": RED, "produced": GREEN}, span=12, alert="TidingsKafkaFailures"),
            series("fsyncs of the offline file", "A second, on a node without Kafka: one for each batch of records.", "cps",
                   [("sum by (instance) (rate(tidings_offline_file_syncs_total{sel}[rate]))", "{{instance}}")],
                   span=12, alert="TidingsOfflineSinkDown"),
        ]),
    ])
