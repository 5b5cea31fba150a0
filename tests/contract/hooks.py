"""Leads schemathesis into deep states: to conversations and messages that there are.

Half of the ids that are valid become ids of a conversation, message or member of the caller's; ids that are
meant to be wrong stay wrong.
"""

import json
import os
import random
import urllib.request
import uuid

import schemathesis

ME = "11111111-1111-4111-8111-111111111111"
API = os.environ["TIDINGS_URL"] + "/api/v1"
rng = random.Random(20261122)


def post(path, body):
    request = urllib.request.Request(API + path, json.dumps(body).encode(), {"X-User-ID": ME})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def new_user():
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


known = {"conversation": [], "message": [], "user": []}
for _ in range(15):
    users = [new_user() for _ in range(3)]
    conversation = post("/conversations", {"kind": "group", "participants": users})["id"]
    known["conversation"].append(conversation)
    known["user"] += users
    for at in range(5):
        message = {"conversation_id": conversation, "message_type": "text", "content": f"Message {at}"}
        known["message"].append(post("/messages", message)["id"])

KINDS = {
    "conversation_id": "conversation",
    "message_id": "message",
    "parent_message_id": "message",
    "before_id": "message",
    "after_id": "message",
    "around_id": "message",
    "user_id": "user",
    "user_ids": "user",
    "participants": "user",
}


def is_id(value):
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def led(value, kind):
    if isinstance(value, list):
        return [led(one, kind) for one in value]
    return rng.choice(known[kind]) if is_id(value) and rng.random() < 0.5 else value


def lead(values):
    if not isinstance(values, dict):
        return values
    if isinstance(values.get("conversations"), dict):
        named = values["conversations"].items()
        values = {**values, "conversations": {led(name, "conversation"): seq for name, seq in named}}
    return {name: led(value, KINDS[name]) if name in KINDS else value for name, value in values.items()}


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    path_parameters = lead(path_parameters)
    if path_parameters and "id" in path_parameters:
        kind = "message" if "/messages/{id}" in context.operation.path else "conversation"
        path_parameters["id"] = led(path_parameters["id"], kind)
    return path_parameters


@schemathesis.hook
def map_query(context, query):
    return lead(query)


@schemathesis.hook
def map_body(context, body):
    return lead(body)
