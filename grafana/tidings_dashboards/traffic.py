"""What the load generator's day does not do: messages for users who are away, repeats, refusals, edits.

    python -m tidings_dashboards.traffic NODE-URL NODE-URL     until it is killed
"""

import itertools
import json
import sys
import time
import urllib.error
import urllib.request
import uuid


def call(node, user, method, path, body=None):
    """(status, body); a refusal is an answer like others."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{node}/api/v1/{path}", data, {"X-User-ID": user}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, None


def main():
    nodes = sys.argv[1:]
    ada, grace, absent = (str(uuid.uuid4()) for _ in range(3))
    status, group = call(nodes[0], ada, "POST", "conversations",
                         {"kind": "group", "title": "On call", "participants": [grace, absent]})
    assert status == 201, status
    place = group["id"]
    for turn in itertools.count():
        node = nodes[turn % len(nodes)]
        body = {"conversation_id": place, "message_type": "text", "content": f"Message {turn}",
                "client_message_id": f"t-{turn}"}
        _, message = call(node, ada, "POST", "messages", body)
        if message:
            one = message.get("message", message)["id"]
            call(node, ada, "POST", "messages", body)
            call(node, ada, "PUT", f"messages/{one}", {"content": "Edited"})
            call(node, grace, "POST", f"messages/{one}/read")
            call(node, ada, "GET", f"messages/{one}/receipts")
        call(node, absent, "POST", "messages", body | {"conversation_id": str(uuid.uuid4())})
        call(node, grace, "GET", "conversations")
        call(node, grace, "GET", f"conversations/{place}/messages?limit=20")
        call(node, ada, "GET", f"presence?user_ids={grace}")
        call(node, ada, "POST", f"conversations/{place}/typing", {"is_typing": True})
        # More than RATE_SYNCS_PER_USER, and than five times as many at once.
        for _ in range(30 if turn % 10 < 2 else 1):
            call(node, ada, "POST", "sync", {"conversations": {}, "after": None, "to": None, "limit": 10,
                                             "store_epoch": None})
        time.sleep(0.4)


if __name__ == "__main__":
    main()
