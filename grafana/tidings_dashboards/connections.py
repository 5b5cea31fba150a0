"""Sockets: how many, how they come and go, what they carry, and who is too fast or too slow."""

from .parts import number, page as dashboard, quantiles, series


def page():
    return dashboard("tidings-connections", "Connections", "Sockets: how they come and go, and what they carry.", [
        ("Now", [
            number("Open", "Sockets open on all nodes.", "short", "sum(tidings_sockets_open{sel})", span=4),
            number("Opened", "Handshakes finished in a second.", "cps", "sum(rate(tidings_sockets_opened_total{sel}[rate]))", span=4, decimals=2),
            number("Closed", "Sockets closed in a second, for whatever reason.", "cps", "sum(rate(tidings_sockets_closed_total{sel}[rate]))", span=4, decimals=2),
            number("Memory per socket", "Memory of all nodes, divided by their sockets: an upper bound, since a node without a "
                   "socket needs memory as well.", "bytes",
                   "sum(tidings_process_resident_bytes{sel}) / sum(tidings_sockets_open{sel})", span=4),
            number("Waiting to be written", "Bytes in the queues of all sockets.", "bytes", "sum(tidings_socket_queue_bytes{sel})",
                   span=4, alert="TidingsSlowConsumers"),
            number("Nodes draining", "Nodes that hand their sockets over because they stop.", "short", "sum(tidings_draining{sel})",
                   span=4, alert="TidingsDrainStuck"),
        ]),
        ("How they come and go", [
            series("Open by node", "Sockets open now.", "short", [("sum by (instance) (tidings_sockets_open{sel})", "{{instance}}")],
                   stack=True, alert="TidingsSocketsNearLimit"),
            series("Opened and closed", "A second. Both high at once: a storm of reconnects.", "cps",
                   [("sum(rate(tidings_sockets_opened_total{sel}[rate]))", "opened"),
                    ("sum(rate(tidings_sockets_closed_total{sel}[rate]))", "closed")], alert="TidingsResyncStorm"),
            series("Closed by reason", "By the name of the close code; lost: the connection ended without one.", "cps",
                   [("sum by (reason) (rate(tidings_sockets_closed_total{sel}[rate])) > 0", "{{reason}}")], stack=True),
            series("Handshake", "From the request to the hello event: identity, subscription, presence.", "s",
                   quantiles("tidings_socket_handshake_seconds")),
            series("Share of the limit", "Sockets open, of those that a node takes (MAX_CONNECTIONS).", "percentunit",
                   [("tidings_sockets_open{sel} / tidings_sockets_limit{sel}", "{{instance}}")], limit=0.85, top=1,
                   alert="TidingsSocketsNearLimit"),
            series("Open files", "Of those that a node may open.", "percentunit",
                   [("tidings_process_open_fds{sel} / tidings_process_fd_limit{sel}", "{{instance}}")], limit=0.85, top=1,
                   alert="TidingsFilesRunOut"),
        ]),
        ("What they carry", [
            series("Frames", "WebSocket frames in a second, pings and pongs included.", "cps",
                   [("sum by (direction) (rate(tidings_socket_frames_total{sel}[rate]))", "{{direction}}")]),
            series("Bytes", "Bytes of WebSocket frames in a second.", "Bps",
                   [("sum by (direction) (rate(tidings_socket_bytes_total{sel}[rate]))", "{{direction}}")]),
            series("Queues", "Bytes that wait to be written, by node.", "bytes",
                   [("sum by (instance) (tidings_socket_queue_bytes{sel})", "{{instance}}")], alert="TidingsSlowConsumers"),
            series("Typing and presence", "Ephemeral events in a second: typing published, presence told.", "cps",
                   [("sum(rate(tidings_typing_published_total{sel}[rate]))", "typing"),
                    ("sum(rate(tidings_presence_told_total{sel}[rate]))", "presence")], span=12),
            series("Watched users", "Users whose presence is watched by sessions of a node.", "short",
                   [("sum by (instance) (tidings_presence_watched_users{sel})", "{{instance}}")], span=12),
        ]),
        ("Too fast, too slow", [
            series("Refused for being too fast", "Requests, commands and sockets in a second, by the limit that they met.", "cps",
                   [("sum by (limit) (rate(tidings_rate_limited_total{sel}[rate]))", "{{limit}}")], stack=True, span=12),
            series("Clients too slow", "Queues that stayed full in a second: the socket was closed or told to resync. And ephemeral "
                   "events dropped from full queues.", "cps",
                   [("sum(rate(tidings_slow_consumers_total{sel}[rate]))", "queues full"),
                    ("sum(rate(tidings_socket_queue_dropped_total{sel}[rate]))", "ephemeral events dropped"),
                    ("sum(rate(tidings_presence_hints_dropped_total{sel}[rate]))", "presence hints dropped")],
                   span=12, alert="TidingsSlowConsumers"),
        ]),
    ])
