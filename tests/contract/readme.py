#!/usr/bin/env python3
"""Runs the examples of README.md against a node that has nothing in it yet, and looks at what they print.

    readme.py README.md http://127.0.0.1:8083
"""

import json
import re
import subprocess
import sys

README, NODE = sys.argv[1:]


def block(language, holds):
    """The one example of this language with this text in it, for the node under test."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", open(README, encoding="utf-8").read(), re.M | re.S)
    found = [one for one in blocks if holds in one]
    assert len(found) == 1, f"README.md has {len(found)} {language} examples with {holds!r}"
    assert "127.0.0.1:8083" in found[0]
    return found[0].replace("127.0.0.1:8083", NODE.removeprefix("http://"))


def run(command, text):
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr}\n{done.stdout}"
    return done.stdout


def values(text):
    """JSON values one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value
        while at < len(text) and text[at].isspace():
            at += 1


sent, listed, history, presence = values(run(["bash", "-euo", "pipefail"], block("sh", "ADA=")))
assert sent["content"] == "Hello Grace" and sent["seq"] == 2, sent
(conversation,) = listed["conversations"]
assert conversation["unread_count"] == 1 and conversation["last_message"]["id"] == sent["id"], listed
assert [message["id"] for message in history["messages"]] == [sent["id"]] and not history["has_more"], history
# Nobody has a socket.
assert presence["presence"] and not any(user["online"] for user in presence["presence"]), presence

# The example leaves the conversation's id to the reader, and goes on for ever.
script = block("js", "new WebSocket").replace('conversation_id: "..."', f'conversation_id: "{conversation["id"]}"')
script += """
socket.addEventListener("message", ({ data }) => { if (JSON.parse(data).type === "ok") socket.close(); });
socket.addEventListener("error", ({ message }) => { console.error(message); process.exit(1); });
"""
version = int(run(["node", "-p", "process.versions.node.split('.')[0]"], ""))
flags = [] if version >= 22 else ["--experimental-websocket"]
hello, *rest = values(run(["node", *flags, "--input-type=module", "-"], script))
assert hello["type"] == "hello", hello
(ok,) = [frame for frame in rest if frame["type"] == "ok"]
assert ok["ref"] == "1" and ok["payload"]["message"]["content"] == "Hi", ok
print("readme: its examples do what it says")
