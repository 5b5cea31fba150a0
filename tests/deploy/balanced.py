#!/usr/bin/env python3
"""Sockets through the balancer, and a node that goes as Kubernetes lets it go: nothing may be lost.

    balanced.py          with TIDINGS_BIN; it starts scripts/cluster, and leaves it running

The first node ends by the pod's own rules (k8s/production): its preStop, then SIGTERM, with its DRAIN_GRACE and
DRAIN_TIME, within its terminationGracePeriodSeconds. Meanwhile a group of clients is written to; those on the node
that goes come back by the balancer and resume.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

import yaml

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
STATE = pathlib.Path(os.environ.get("TIDINGS_STATE") or REPO / ".state")
sys.path.insert(0, str(REPO / "tests/contract"))
from blackbox import Node, Refused, WS, children, free_port, http, uid, until  # noqa: E402

CLIENTS = 40
WAIT = 20.0  # for what should be there in a moment


def script(*command, **environment):
    done = subprocess.run([REPO / "scripts" / command[0], *command[1:]], env={**os.environ, **environment},
                          stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, command
    return done.stdout


def token(user):
    return {"Authorization": "Bearer " + script("token", user).strip()}


def metric(admin, name):
    """Of the node with this operators' address; None if it does not answer."""
    try:
        text = http(int(admin.rsplit(":", 1)[1]), "GET", "/metrics").body.decode()
    except OSError:
        return None
    return float(re.search(rf"^{name} (.*)$", text, re.M)[1])


def seconds(text):
    value, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(value) * {"ms": 0.001, "s": 1, "m": 60}[unit]


class Client(threading.Thread):
    """Holds a socket, comes back when it ends, and keeps what it was told of one conversation."""

    def __init__(self, port, user, headers):
        super().__init__(daemon=True)
        self.port, self.user, self.headers = port, user, headers
        self.conversation, self.cursor = None, 0
        self.seqs, self.closes, self.refusals = {}, [], 0
        self.online, self.ended, self.fault = threading.Event(), threading.Event(), None

    def take(self, message):
        self.seqs[message["seq"]] = message["id"]
        while self.cursor + 1 in self.seqs:
            self.cursor += 1

    def resume(self, socket):
        more = True
        while more and self.conversation:
            kind, page = socket.ask("sync", {"conversations": {self.conversation: self.cursor}, "limit": 200})
            if kind == "closed":
                return
            assert kind == "ok", (kind, page)
            (one,) = page["conversations"]
            for message in one.get("messages", []):
                self.take(message)
            if one["status"] == "changed":
                self.cursor = max(self.cursor, one["next_seq"])
            more = one.get("more", False)

    def run(self):
        try:
            while not self.ended.is_set():
                try:
                    socket = WS(self.port, device="phone", headers=self.headers)
                except (Refused, OSError):
                    self.refusals += 1
                    self.ended.wait(0.2)
                    continue
                self.resume(socket)
                self.online.set()
                self.listen(socket)
                self.online.clear()
        except Exception as fault:  # noqa: BLE001 - told by the main thread
            self.fault = fault

    def listen(self, socket):
        seen = 0
        while not self.ended.is_set():
            with socket.more:
                if seen == len(socket.events) and not socket.closed:
                    socket.more.wait(0.5)
                new, closed = socket.events[seen:], socket.closed
            seen += len(new)
            for event in new:
                if event["type"] == "new_message":
                    self.take(event["payload"]["message"])
            if closed and not new:
                self.closes.append((time.monotonic(), socket.close_code))
                return


class Sender(threading.Thread):
    """Sends by the balancer, about twenty a second; what failed is sent again as it was."""

    def __init__(self, port, headers, conversation):
        super().__init__(daemon=True)
        self.port, self.headers, self.conversation = port, headers, conversation
        self.sent, self.again, self.ended = {}, [], threading.Event()

    def run(self):
        while not self.ended.wait(0.05):
            body = {"conversation_id": self.conversation, "message_type": "text", "content": "x", "client_message_id": uid()}
            while True:
                try:
                    answer = http(self.port, "POST", "/api/v1/messages", headers=self.headers, body=body)
                except OSError as fault:
                    answer = fault
                if getattr(answer, "status", None) in (200, 201):
                    self.sent[answer["seq"]] = answer["id"]
                    break
                self.again.append(repr(answer)[:200])
                time.sleep(0.1)


def pod():
    """Of the manifests: (template's spec, the settings of its ConfigMap)."""
    done = subprocess.run(["kubectl", "kustomize", REPO / "k8s/production"], stdout=subprocess.PIPE, text=True, check=True)
    things = {thing["kind"]: thing for thing in yaml.safe_load_all(done.stdout)}
    return things["Deployment"]["spec"]["template"]["spec"], things["ConfigMap"]["data"]


def pre_stop(container):
    (action, value), = container["lifecycle"]["preStop"].items()
    assert action == "sleep", action
    time.sleep(value["seconds"])


def drain():
    spec, settings = pod()
    grace = spec["terminationGracePeriodSeconds"]
    environment = {"DRAIN_GRACE": settings["DRAIN_GRACE"], "DRAIN_TIME": settings["DRAIN_TIME"]}
    # With these settings, whatever ran before.
    script("cluster", "stop", "node1", "node2")
    cluster = dict(re.findall(r"(\w+)=(\S+)", script("cluster", "up", **environment)))
    os.environ["JWT_KEY"] = cluster["JWT_KEY"]
    port, nodes = int(cluster["CLUSTER_PORT"]), [cluster["NODE1_ADMIN"], cluster["NODE2_ADMIN"]]
    pid = int((STATE / "cluster/node1/pid").read_text())
    node1 = int((STATE / "cluster/node1/port").read_text())

    users = [uid() for _ in range(CLIENTS)]
    writer = token(uid())
    made = http(port, "POST", "/api/v1/conversations", headers=writer,
                body={"kind": "group", "title": "all", "participants": users})
    assert made.status == 201, made
    first = made["last_seq"]
    clients = [Client(port, user, token(user)) for user in users]
    for client in clients:
        client.conversation, client.cursor = made["id"], first
        client.start()
    assert all(client.online.wait(WAIT) for client in clients), [client.fault for client in clients]
    spread = [metric(node, "tidings_sockets_open") for node in nodes]
    assert sum(spread) == CLIENTS and min(spread) >= CLIENTS // 4, spread
    sender = Sender(port, writer, made["id"])
    sender.start()
    assert until(lambda: len(sender.sent) > 20, WAIT)

    began = time.monotonic()
    pre_stop(spec["containers"][0])
    assert http(node1, "GET", "/ready").status == 200 and not any(client.closes for client in clients)
    os.kill(pid, 15)

    def not_ready():
        try:
            return http(node1, "GET", "/ready").status == 503
        except OSError:
            return False
    assert until(not_ready, WAIT, 0.01)
    unready = time.monotonic()
    left = grace - (time.monotonic() - began)
    assert until(lambda: not os.path.exists(f"/proc/{pid}"), left), f"it would have been killed after {grace} s"
    ended = time.monotonic()
    log = (STATE / "cluster/node1/log").read_text().splitlines()
    assert any('"stopped"' in line and '"drained":true' in line for line in log), log[-3:]

    assert until(lambda: all(client.online.is_set() for client in clients), WAIT), [client.fault for client in clients]
    assert metric(nodes[1], "tidings_sockets_open") == CLIENTS
    sender.ended.set()
    sender.join(WAIT)
    closes = sorted(close for client in clients for close in client.closes)
    assert len(closes) == spread[0] and {code for _, code in closes} == {1012}, (spread, closes)
    gap = closes[0][0] - unready
    took = closes[-1][0] - closes[0][0]
    assert gap > seconds(settings["DRAIN_GRACE"]) - 0.5, gap
    last = max(sender.sent)
    assert until(lambda: all(client.cursor >= last for client in clients), WAIT), [(client.cursor, last) for client in clients]
    assert not any(client.fault for client in clients), [client.fault for client in clients]
    for client in clients:
        got = {seq: one for seq, one in client.seqs.items() if seq > first}
        assert got == sender.sent, (len(got), len(sender.sent))
    print(f"balanced: {len(sender.sent)} messages to {CLIENTS} clients while a node went: none lost; sent again "
          f"{len(sender.again)}, refused handshakes {sum(client.refusals for client in clients)}")
    print(f"balanced: {len(closes)} sockets closed from {gap:.1f} s after it was not ready, over {took:.1f} s; it was gone "
          f"{ended - began:.1f} s after the pod was told to, of {grace}")

    script("cluster", "start", "node1", **environment)
    def lands_there():
        socket = WS(port, device="phone", headers=token(uid()))
        socket.wait("hello")
        return metric(nodes[0], "tidings_sockets_open") > 0
    assert until(lands_there, WAIT, 0.5)
    for client in clients:
        client.ended.set()
    print("balanced: a node that is back gets sockets again")


class Balancer:
    def __init__(self, node, gateways):
        self.port, stats = free_port(), free_port()
        environment = {**os.environ, "LISTEN": f"127.0.0.1:{self.port}", "STATS": f"127.0.0.1:{stats}",
                       "NODE1": f"127.0.0.1:{node}", "NODE2": "127.0.0.1:1"}
        environment.pop("GATEWAYS", None)
        if gateways:
            environment["GATEWAYS"] = gateways
        self.process = subprocess.Popen(["haproxy", "-db", "-f", REPO / "deploy/haproxy.cfg"], env=environment,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        children.append(self.process)

        def ready():
            try:
                return http(self.port, "GET", "/ready").status == 200
            except OSError:
                return False
        assert until(ready, WAIT)


def named():
    """In gateway mode users are named, and addresses told, by the gateways alone."""
    with tempfile.TemporaryDirectory() as folder:
        node = Node(os.environ["TIDINGS_BIN"], folder, "gateway", {
            "DATA_DIR": folder, "AUTH_MODE": "gateway", "TRUSTED_PROXIES": "127.0.0.1", "MAX_CONNECTIONS_PER_IP": "1"})
        node.ready()
        user = uid()
        for gateways, status in ((None, 401), ("192.0.2.1 198.51.100.0/24", 401), ("192.0.2.1 127.0.0.1/32", 200)):
            balancer = Balancer(node.port, gateways)
            answer = http(balancer.port, "GET", "/api/v1/conversations", user=user)
            assert answer.status == status, (gateways, answer)
            for path in ("/metrics", "/admin/v1/disconnect", "//metrics"):
                answer = http(balancer.port, "GET", path)
                assert answer.status == 404 and answer["code"] is None, ("the node answers", answer)
        # The gateway's word for the client's address counts: one socket for each.
        def socket(address):
            return WS(balancer.port, user=uid(), device="phone", headers={"X-Forwarded-For": address})
        first = socket("203.0.113.7")
        assert first.wait("hello")
        try:
            socket("203.0.113.7")
            raise AssertionError("a second socket from one address")
        except Refused as refused:
            assert refused.answer.status in (429, 503), refused.answer
        assert socket("203.0.113.8").wait("hello")
        # Nobody else's does: what these say is taken away, and this machine has no limit.
        node = Node(os.environ["TIDINGS_BIN"], folder, "jwt", {
            "DATA_DIR": folder + "/jwt", "AUTH_MODE": "jwt", "JWT_KEY": os.environ["JWT_KEY"],
            "TRUSTED_PROXIES": "127.0.0.1", "MAX_CONNECTIONS_PER_IP": "1"})
        node.ready()
        balancer = Balancer(node.port, None)
        for _ in range(2):
            liar = WS(balancer.port, device="phone", headers={**token(uid()), "X-Forwarded-For": "203.0.113.7"})
            assert liar.wait("hello")
    print("balanced: X-User-ID and X-Forwarded-For are a gateway's to set, and /metrics and /admin not for clients")


if __name__ == "__main__":
    os.environ["JWT_KEY"] = "a-secret-of-this-test-0123456789abcdef"
    try:
        named()
        drain()
    finally:
        for child in children:
            child.kill()
