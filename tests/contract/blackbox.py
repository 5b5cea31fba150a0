#!/usr/bin/env python3
"""A black-box client of Tidings, written from its wire contract alone: nothing here is shared with the service.

    tests/contract/blackbox.py --binary target/debug/tidings              one node, SQLite
    tests/contract/blackbox.py --binary target/debug/tidings --cluster    two nodes; DATABASE_URL, REDIS_URL and
                                                                          KAFKA_BROKERS as `scripts/services up` prints

It starts its own nodes (dev, jwt and one in gateway mode with small limits), puts the parties of every check on
different nodes, prints one line per check, and ends with exit code 1 if one failed. Standard library only; the
cluster mode also needs `psql` (a database of its own) and `kcat` (to read the offline topic).
"""
import argparse, base64, concurrent.futures, hashlib, hmac, http.client, json, os, re, shutil, signal, socket
import struct, subprocess, sys, tempfile, threading, time, traceback, urllib.parse, uuid

WAIT = 8.0  # how long an expected thing may take before it counts as missing
TOTAL = 85.0  # the whole run
FULL = "tidings.v1.json"
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
MESSAGE = ("id conversation_id seq change_seq sender_id client_message_id message_type content parent_message_id "
           "reply_count mentions metadata created_at edited_at deleted_at").split()
CONVERSATION = "id kind title created_by created_at last_seq last_message unread_count me".split()
ME = "role can_send_messages delivered_seq read_seq muted_until".split()
MEMBER = "user_id role can_send_messages joined_at delivered_seq read_seq".split()
HELLO = "session_id node_id user_id device_id heartbeat_seconds limits store_epoch server_time".split()
CLASSIC = {"new_message", "message_delivered", "message_read", "typing", "hello", "message_updated",
           "message_deleted", "pong", "ok", "error"}
ORIGIN = "https://app.example"
JWT_KEY = "a-secret-of-the-black-box-test-0123456789"

print_lock = threading.Lock()
counts = {"ok": 0, "FAIL": 0, "pending": 0}
local = threading.local()
children = []
sockets = []


# --- reporting ---------------------------------------------------------------

def line(verdict, name, text=""):
    with print_lock:
        counts[verdict] += 1
        print(f"{verdict:7} [{getattr(local, 'section', '-')}] {name}{text}", flush=True)


def check(name, good, expected="", got=None):
    """One line; `expected` names what the contract says."""
    if good:
        line("ok", name)
    else:
        shown = got if isinstance(got, str) else repr(got)
        line("FAIL", name, f"\n        expected: {expected or name}\n        got:      {shown[:900]}")
    return bool(good)


def has(thing, keys):
    return isinstance(thing, dict) and all(key in thing for key in keys)


def is_time(text):
    return isinstance(text, str) and bool(TIME.match(text))


def is_uuid(text):
    try:
        return str(uuid.UUID(text)) == text
    except (ValueError, TypeError, AttributeError):
        return False


def until(what, timeout=WAIT, pause=0.05):
    """Asks `what` until it answers something true; its last answer."""
    end = time.monotonic() + timeout
    while True:
        answer = what()
        if answer or time.monotonic() > end:
            return answer
        time.sleep(pause)


def uid():
    return str(uuid.uuid4())


# --- HTTP --------------------------------------------------------------------

class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        try:
            self.json = json.loads(body) if body else None
        except ValueError:
            self.json = None

    def __repr__(self):
        return f"{self.status} {self.headers.get('content-type')} {self.body[:600]!r}"

    def __getitem__(self, key):
        return self.json[key] if isinstance(self.json, dict) and key in self.json else None


def http(port, method, path, user=None, body=None, headers=None, raw=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT + 4)
    head = {"X-User-ID": user} if user else {}
    data = raw
    if body is not None:
        data = json.dumps(body).encode()
    if data is not None:
        head["Content-Type"] = "application/json"
    head.update(headers or {})
    try:
        connection.request(method, path, body=data, headers=head)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def http_client_fix():
    """`http` the function hides the package's name; keep its client under the old one."""
    import importlib
    http.client = importlib.import_module("http.client")


http_client_fix()


def is_problem(thing, status=None):
    return (has(thing, ["type", "title", "status", "detail", "code"]) and isinstance(thing["code"], str)
            and (status is None or thing["status"] in status))


def refused(name, answer, status, field=None, code=None):
    """A refusal in the form of RFC 9457."""
    status = status if isinstance(status, tuple) else (status,)
    body = answer.json
    good = (answer.status in status and answer.headers.get("content-type", "").startswith("application/problem+json")
            and is_problem(body, (answer.status,)) and "request_id" in body)
    if good and field:
        good = field in str(body.get("field"))
    if good and code:
        good = body["code"] == code
    return check(name, good, f"{'/'.join(map(str, status))} problem+json" + (f" with field {field}" if field else ""), answer)


# --- WebSocket ---------------------------------------------------------------

class Refused(Exception):
    def __init__(self, answer):
        super().__init__(repr(answer))
        self.answer = answer


class WS:
    """A client of RFC 6455 that keeps all it got, and can also break the protocol on demand."""

    def __init__(self, port, user=None, device=None, full=True, query=None, headers=None, protocols=None,
                 pong=True, small=False):
        self.events, self.close_code, self.close_reason, self.closed = [], None, None, False
        self.more = threading.Condition()
        self.pong, self.refs, self.reading = pong, 0, threading.Event()
        self.reading.set()
        self.send_lock = threading.Lock()
        head = {"Host": f"127.0.0.1:{port}", "Upgrade": "websocket", "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode()}
        if user:
            head["X-User-ID"] = user
        if device:
            head.update({"X-Device-ID": device, "X-Platform": "ios", "X-App-Version": "1.2.3"})
        offered = protocols if protocols is not None else ([FULL] if full else [])
        if offered:
            head["Sec-WebSocket-Protocol"] = ", ".join(offered)
        head.update(headers or {})
        path = "/ws" + ("?" + urllib.parse.urlencode(query) if query else "")
        self.sock = socket.socket()
        if small:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(WAIT + 4)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        text = f"GET {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in head.items()) + "\r\n"
        self.sock.sendall(text.encode())
        self.rest = b""
        while b"\r\n\r\n" not in self.rest:
            data = self.sock.recv(65536)
            if not data:
                break
            self.rest += data
        raw, _, self.rest = self.rest.partition(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1]) if lines[0] else 0
        self.headers = {k.strip().lower(): v.strip() for k, _, v in (l.partition(":") for l in lines[1:])}
        if status != 101:
            want = int(self.headers.get("content-length", 0))
            while len(self.rest) < want:
                data = self.sock.recv(65536)
                if not data:
                    break
                self.rest += data
            self.sock.close()
            raise Refused(Answer(status, self.headers, self.rest))
        accept = base64.b64encode(hashlib.sha1(
            (head["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
        if self.headers.get("sec-websocket-accept") != accept:
            raise AssertionError("Sec-WebSocket-Accept is wrong")
        self.sock.settimeout(None)
        sockets.append(self)
        threading.Thread(target=self._read, daemon=True).start()

    def _exactly(self, size):
        while len(self.rest) < size:
            self.reading.wait()
            data = self.sock.recv(262144)
            if not data:
                raise ConnectionError
            self.rest += data
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def _read(self):
        parts = b""
        try:
            while True:
                first, second = self._exactly(2)
                size = second & 127
                if size == 126:
                    size = struct.unpack(">H", self._exactly(2))[0]
                elif size == 127:
                    size = struct.unpack(">Q", self._exactly(8))[0]
                data = self._exactly(size)
                kind = first & 15
                if kind == 9:
                    if self.pong:
                        self.frame(10, data)
                elif kind == 8:
                    with self.more:
                        self.close_code = struct.unpack(">H", data[:2])[0] if len(data) >= 2 else 1005
                        self.close_reason = data[2:].decode(errors="replace")
                        self.more.notify_all()
                    try:
                        self.frame(8, data[:2])
                    except OSError:
                        pass
                elif kind in (0, 1):
                    parts += data
                    if first & 128:
                        event, parts = json.loads(parts), b""
                        with self.more:
                            self.events.append(event)
                            self.more.notify_all()
        except (OSError, ConnectionError, ValueError):
            pass
        with self.more:
            self.closed = True
            if self.close_code is None:
                self.close_code = 1006
            self.more.notify_all()

    def frame(self, kind, data=b"", fin=True, mask=True, reserved=0):
        first = (128 if fin else 0) | reserved | kind
        bit = 128 if mask else 0
        if len(data) < 126:
            head = bytes([first, bit | len(data)])
        elif len(data) < 65536:
            head = bytes([first, bit | 126]) + struct.pack(">H", len(data))
        else:
            head = bytes([first, bit | 127]) + struct.pack(">Q", len(data))
        if mask:
            head += b"\0\0\0\0"  # a mask of zeroes leaves the data as it is
        with self.send_lock:
            self.sock.sendall(head + data)

    def text(self, text):
        self.frame(1, text.encode())

    def send(self, kind, payload=None, ref=None):
        command = {"type": kind}
        if payload is not None:
            command["payload"] = payload
        if ref is not None:
            command["ref"] = ref
        self.text(json.dumps(command))

    def find(self, kind, match=None):
        for event in self.events:
            payload = event.get("payload") or {}
            if (kind is None or event.get("type") == kind) and (match is None or match(payload)):
                return event
        return None

    def count(self, kind, match=None):
        with self.more:
            return sum(1 for e in self.events if e.get("type") == kind and (match is None or match(e.get("payload") or {})))

    def wait(self, kind, match=None, timeout=WAIT):
        """The event's payload, or None if it did not come."""
        end = time.monotonic() + timeout
        with self.more:
            while True:
                event = self.find(kind, match)
                if event is not None:
                    return event.get("payload") if event.get("payload") is not None else {}
                left = end - time.monotonic()
                if left <= 0 or self.closed:
                    return None
                self.more.wait(left)

    def ask(self, kind, payload=None, timeout=WAIT):
        """A command with a ref: (type of the answer, its payload)."""
        self.refs += 1
        ref = f"r{self.refs}"
        try:
            self.send(kind, payload, ref)
        except OSError as fault:
            return ("closed", str(fault))
        end = time.monotonic() + timeout
        with self.more:
            while True:
                for event in self.events:
                    if event.get("ref") == ref:
                        return (event["type"], event.get("payload"))
                left = end - time.monotonic()
                if left <= 0 or self.closed:
                    return ("closed" if self.closed else "none", self.close_code)
                self.more.wait(left)

    def wait_close(self, timeout=WAIT):
        end = time.monotonic() + timeout
        with self.more:
            while self.close_code is None:
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self.more.wait(left)
            return self.close_code

    def alive(self):
        if self.closed or self.close_code is not None:
            return False
        return self.ask("ping")[0] == "ok"

    def kinds(self):
        with self.more:
            return [e.get("type") for e in self.events]

    def tail(self):
        with self.more:
            return json.dumps(self.events[-4:])[:800] + (f" closed {self.close_code} {self.close_reason}" if self.close_code else "")

    def leave(self):
        """Closes as a client that goes."""
        try:
            self.frame(8, struct.pack(">H", 1000))
            self.wait_close(2)
            self.sock.close()
        except OSError:
            pass

    def cut(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
        except OSError:
            pass


def handshake(*args, **named):
    """The answer of a handshake: a WS, or the HTTP answer that refused it."""
    try:
        return WS(*args, **named)
    except Refused as fault:
        return fault.answer


# --- nodes -------------------------------------------------------------------

def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Node:
    def __init__(self, binary, directory, name, settings):
        self.binary, self.name = binary, name
        self.port, self.admin = free_port(), free_port()
        self.log = os.path.join(directory, name + ".log")
        self.env = {"PATH": os.environ.get("PATH", ""), "SERVER_PORT": str(self.port),
                    "ADMIN_ADDR": f"127.0.0.1:{self.admin}", "LOG_FORMAT": "json", **settings}
        self.cwd = directory
        self.start()

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([self.binary], env=self.env, cwd=self.cwd, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL)
        children.append(self.process)

    def ready(self):
        def look():
            if self.process.poll() is not None:
                return True
            try:
                return http(self.port, "GET", "/ready").status == 200
            except (OSError, ConnectionError):
                return False
        if not until(look, 30) or self.process.poll() is not None:
            with open(self.log) as log:
                raise SystemExit(f"{self.name} did not come up: {log.read()[-2000:]}")


class World:
    """The nodes: a and b serve the dev mode, ja and jb tokens, small the gateway mode with small limits."""

    def __init__(self, binary, cluster, directory):
        self.cluster, self.directory = cluster, directory
        clocks = {"SETTLE_GRACE": "1s", "OFFLINE_AFTER": "3s", "NODE_LEASE": "1500ms", "DRAIN_GRACE": "0s",
                  "DRAIN_TIME": "200ms", "ALLOWED_ORIGINS": ORIGIN}
        self.database = self.topic = None
        stores = {}
        if cluster:
            tag = uuid.uuid4().hex[:10]
            self.admin_url = os.environ["DATABASE_URL"]
            self.database = f"blackbox_{tag}"
            self.psql(f"CREATE DATABASE {self.database}")
            parts = urllib.parse.urlsplit(self.admin_url)
            self.topic = f"blackbox-{tag}"
            stores = {"DATABASE_URL": parts._replace(path="/" + self.database).geturl(), "REDIS_URL": os.environ["REDIS_URL"],
                      "REDIS_PREFIX": f"bb-{tag}", "KAFKA_BROKERS": os.environ["KAFKA_BROKERS"],
                      "KAFKA_OFFLINE_TOPIC": self.topic, "KAFKA_TOPIC_PARTITIONS": "3", "MIGRATE_ON_START": "true"}
            self.brokers = os.environ["KAFKA_BROKERS"]

        def node(name, extra):
            data = os.path.join(directory, name)
            os.makedirs(data)
            return Node(binary, directory, name, {**clocks, **stores, "DATA_DIR": data, **extra})

        jwt = {"AUTH_MODE": "jwt", "JWT_KEY": JWT_KEY}
        small = {"AUTH_MODE": "gateway", "TRUSTED_PROXIES": "127.0.0.1/32", "RATE_SENDS_PER_USER": "2", "RATE_TYPING_PER_USER": "2",
                 "RATE_SYNCS_PER_USER": "1", "RATE_HANDSHAKES_PER_IP": "2", "MAX_CONNECTIONS_PER_IP": "3",
                 "MAX_CONNECTIONS": "8", "MAX_GROUP_SIZE": "4", "HEARTBEAT_INTERVAL": "1s", "HEARTBEAT_TIMEOUT": "1s",
                 "DRAIN_GRACE": "1500ms"}
        self.a = node("a", {})
        if cluster:
            self.a.ready()  # it migrates; the others find the tables
        self.b = node("b", {}) if cluster else self.a
        self.ja = node("ja", jwt)
        self.jb = node("jb", jwt) if cluster else self.ja
        self.small = node("small", small)
        self.all = list({id(n): n for n in (self.a, self.b, self.ja, self.jb, self.small)}.values())
        for one in self.all:
            one.ready()

    def psql(self, statement):
        subprocess.run(["psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", self.admin_url, "-c", statement], check=True,
                       stdout=subprocess.DEVNULL, timeout=20)

    def records(self):
        """The offline records so far: [(key, headers, value)]."""
        found = []
        if self.cluster:
            out = subprocess.run(["kcat", "-C", "-q", "-b", self.brokers, "-t", self.topic, "-o", "beginning", "-e",
                                  "-f", "%k\t%h\t%s\n"], capture_output=True, text=True, timeout=15).stdout
            for row in out.splitlines():
                key, headers, value = row.split("\t", 2)
                found.append((key, dict(h.partition("=")[::2] for h in headers.split(",")), json.loads(value)))
        else:
            with open(os.path.join(self.directory, "a", "offline.jsonl")) as file:
                for row in file:
                    if row.endswith("\n"):
                        row = json.loads(row)
                        # The file's frame around the record is not in the contract: take the value where it is.
                        value = row if "recipients" in row else row.get("value") or row.get("data") or {}
                        value = json.loads(value) if isinstance(value, str) else value
                        found.append((row.get("key"), row.get("headers") or row, value))
        return found

    def stop(self):
        for one in sockets:
            one.reading.set()
            one.cut()
        for process in children:
            if process.poll() is None:
                process.kill()
        for process in children:
            process.wait()
        if self.database:
            try:
                self.psql(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
            except (subprocess.SubprocessError, OSError):
                pass


# --- verbs -------------------------------------------------------------------

def group(node, owner, *others, title="A group", **extra):
    answer = http(node.port, "POST", "/api/v1/conversations", owner,
                  {"kind": "group", "title": title, "participants": list(others), **extra})
    if answer.status != 201:
        raise AssertionError(f"group: {answer}")
    return answer["id"]


def direct(node, one, other):
    answer = http(node.port, "POST", "/api/v1/conversations", one, {"kind": "direct", "participants": [other]})
    if answer.status not in (200, 201):
        raise AssertionError(f"direct: {answer}")
    return answer["id"]


def post(node, user, conversation, content="Hello", kind="text", **extra):
    return http(node.port, "POST", "/api/v1/messages", user,
                {"conversation_id": conversation, "content": content, "message_type": kind, **extra})


def sent(node, user, conversation, content="Hello", **extra):
    answer = post(node, user, conversation, content, **extra)
    if answer.status != 201:
        raise AssertionError(f"send: {answer}")
    return answer.json


def of(message):
    return lambda payload: (payload.get("message") or {}).get("id") == message["id"]


def by_id(message, user=None):
    return lambda payload: payload.get("message_id") == message["id"] and user in (None, payload.get("user_id"))


def covers(message, user):
    return lambda p: (p.get("conversation_id") == message["conversation_id"] and p.get("user_id") == user
                      and (p.get("from_seq") or 1 << 60) <= message["seq"] <= (p.get("up_to_seq") or 0))


# --- the checks --------------------------------------------------------------

def operations(w):
    for node in {w.a.port: w.a, w.b.port: w.b}.values():
        for path in ("/health", "/ready"):
            answer = http(node.port, "GET", path)
            check(f"GET {path} 200 on {node.name}", answer.status == 200, "200", answer)
        answer = http(node.admin, "GET", "/metrics")
        check(f"GET /metrics on the admin listener of {node.name}", answer.status == 200 and b"tidings_" in answer.body, "200 with tidings_…", answer)
    answer = http(w.ja.port, "GET", "/metrics")  # in dev mode the main port may serve them, too
    check("metrics are not on the main port of a node that is not in dev mode", answer.status in (401, 404), "404", answer)
    check("admin calls are not on the main port", http(w.a.port, "POST", "/admin/v1/disconnect", uid(), {"user_id": uid()}).status in (404, 405), "404", "")
    for path in ("/openapi.json", "/asyncapi.json", "/docs"):
        answer = http(w.a.port, "GET", path)
        if answer.status == 404:
            line("pending", f"GET {path}")
        else:
            check(f"GET {path}", answer.status == 200 and (path == "/docs" or isinstance(answer.json, dict)), "200", answer)
    # CORS and origins
    answer = http(w.a.port, "OPTIONS", "/api/v1/messages", headers={"Origin": ORIGIN, "Access-Control-Request-Method": "POST",
                                                                    "Access-Control-Request-Headers": "x-user-id, content-type, idempotency-key"})
    check("CORS: preflight of an allowed origin", answer.status in (200, 204) and answer.headers.get("access-control-allow-origin") == ORIGIN,
          f"access-control-allow-origin: {ORIGIN}", f"{answer.status} {answer.headers}")
    answer = http(w.a.port, "OPTIONS", "/api/v1/messages", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"})
    check("CORS: preflight of a foreign origin is not allowed", answer.headers.get("access-control-allow-origin") not in ("*", "https://evil.example"), "no allow-origin", answer.headers)
    answer = handshake(w.a.port, uid(), "d", headers={"Origin": "https://evil.example"})
    check("a socket of a foreign Origin is refused with 403", isinstance(answer, Answer) and answer.status == 403, "403", answer)
    check("a socket of an allowed origin opens", isinstance(handshake(w.a.port, uid(), "d", headers={"Origin": ORIGIN}), WS), "101", "")
    # identity
    refused("REST without identity", http(w.a.port, "GET", "/api/v1/conversations"), 401)
    refused("REST with a user id that is no UUID", http(w.a.port, "GET", "/api/v1/conversations", "bob"), (400, 401))
    answer = handshake(w.a.port)
    check("a socket without identity is refused", isinstance(answer, Answer) and answer.status == 401, "401", answer)
    refused("an unknown path", http(w.a.port, "GET", "/api/v1/nothing", uid()), 404)
    answer = http(w.a.port, "PATCH", "/api/v1/messages", uid(), {})
    check("a wrong method", answer.status in (404, 405), "405", answer)


def conversations(w):
    ada, bob, eve, dan = uid(), uid(), uid(), uid()
    watch = WS(w.b.port, bob, "phone")
    watch.wait("hello")
    answer = http(w.a.port, "POST", "/api/v1/conversations", ada, {"kind": "direct", "participants": [bob]})
    c = answer.json or {}
    check("create direct: 201 with the conversation", answer.status == 201 and has(c, CONVERSATION) and has(c["me"], ME) and is_uuid(c["id"])
          and c["kind"] == "direct" and c["created_by"] == ada and is_time(c["created_at"]) and c["unread_count"] == 0 and c["last_message"] is None, "201, shape of Conversation", answer)
    check("the caller becomes owner", c["me"]["role"] == "owner" and c["me"]["can_send_messages"] is True, "role owner", c["me"])
    again = http(w.b.port, "POST", "/api/v1/conversations", ada, {"kind": "direct", "participants": [bob]})
    check("create direct again on another node: 200 with the same", again.status == 200 and again["id"] == c["id"], "200", again)
    again = http(w.b.port, "POST", "/api/v1/conversations", bob, {"kind": "direct", "participants": [ada]})
    check("create direct from the other side: 200 with the same", again.status == 200 and again["id"] == c["id"], "200", again)
    p = watch.wait("conversation_updated", lambda p: p["conversation"]["id"] == c["id"])
    check("conversation_updated when created, {conversation, seq, timestamp}", p and has(p, ["conversation", "seq", "timestamp"]) and p["seq"] == 1
          and is_time(p["timestamp"]), "event with seq 1", p or watch.tail())
    if p:
        # The same event for all members: without what is each one's own.
        lacks = [k for k in CONVERSATION if k not in p["conversation"] and k not in ("me", "unread_count")]
        check("…its conversation has the shape of Conversation", not lacks, "all fields, `me` of the receiver", f"lacks {lacks}")
        check("…and if it has `me`, it is the receiver's", (p["conversation"].get("me") or {"role": "member"})["role"] == "member", "me.role member for bob", p["conversation"].get("me"))
    answer = http(w.a.port, "POST", "/api/v1/conversations", ada, {"kind": "group", "title": "Team", "participants": [bob, eve], "unknown_field": 1})
    g = answer.json or {}
    check("create group: 201, title, members; unknown fields ignored", answer.status == 201 and g["title"] == "Team" and g["kind"] == "group", "201", answer)
    path = f"/api/v1/conversations/{g['id']}"
    watch.wait("conversation_updated", lambda p: p["conversation"]["id"] == g["id"])
    refused("an unknown kind", http(w.a.port, "POST", "/api/v1/conversations", ada, {"kind": "club", "participants": [bob]}), (400, 422))
    refused("a participant that is no UUID", http(w.a.port, "POST", "/api/v1/conversations", ada, {"kind": "group", "participants": ["x"]}), (400, 422))
    refused("a direct one with two others", http(w.a.port, "POST", "/api/v1/conversations", ada, {"kind": "direct", "participants": [bob, eve]}), (400, 422))
    answer = http(w.b.port, "GET", path, bob)
    members = answer["members"] or []
    check("GET conversation with members", answer.status == 200 and has(answer.json, CONVERSATION) and len(members) == 3
          and all(has(m, MEMBER) and is_time(m["joined_at"]) for m in members), "members of the contract's shape", answer)
    refused("GET a foreign conversation", http(w.b.port, "GET", path, dan), 404)
    unknown = http(w.b.port, "GET", f"/api/v1/conversations/{uid()}", dan)
    refused("GET an unknown conversation", unknown, 404)
    check("foreign and unknown are told alike", http(w.b.port, "GET", path, dan)["code"] == unknown["code"], "the same code", unknown)
    answer = http(w.a.port, "PATCH", path, ada, {"title": "Renamed"})
    check("PATCH title: 200 with the changed conversation", answer.status == 200 and answer["title"] == "Renamed", "200", answer)
    p = watch.wait("conversation_updated", lambda p: p["conversation"].get("title") == "Renamed")
    check("conversation_updated for the title", p and p["seq"] == 2, "seq 2", p or watch.tail())
    # participants
    answer = http(w.a.port, "GET", path + "/participants?limit=2", ada)
    names = [k for k, v in (answer.json or {}).items() if isinstance(v, list)]
    rows = answer[names[0]] if names else []
    check("GET participants: a list with next_cursor", answer.status == 200 and has(answer.json, ["next_cursor"]) and len(rows) == 2
          and all(has(m, MEMBER) for m in rows), "{participants|members: [2], next_cursor}", answer)
    rest = http(w.a.port, "GET", path + "/participants?" + urllib.parse.urlencode({"limit": 2, "cursor": answer["next_cursor"]}), ada)
    check("…its second page is the last", rest.status == 200 and len(rest[names[0]]) == 1 and rest["next_cursor"] is None
          and len({m["user_id"] for m in rows + rest[names[0]]}) == 3, "1 more, next_cursor null", rest)
    refused("participants by a plain member", http(w.a.port, "POST", path + "/participants", eve, {"user_ids": [dan]}), 403)
    first = sent(w.a, ada, g["id"], "before dan")
    answer = http(w.a.port, "POST", path + "/participants", ada, {"user_ids": [dan], "with_history": False})
    check("POST participants without history", answer.status in (200, 201), "200 or 201", answer)
    answer = http(w.b.port, "GET", path + "/messages", dan)
    check("who came without history does not see it", answer.status == 200 and answer["messages"] == [], "no messages", answer)
    refused("…nor the single message", http(w.b.port, "GET", f"/api/v1/messages/{first['id']}", dan), 404)
    p = watch.wait("conversation_updated", lambda p: p["conversation"]["id"] == g["id"] and p["seq"] == 4)
    check("conversation_updated for a new member", p, "seq 4", p or watch.tail())
    zoe = uid()
    answer = http(w.a.port, "POST", path + "/participants", ada, {"user_ids": [zoe]})
    check("with_history is true by default", http(w.b.port, "GET", path + "/messages", zoe)["messages"][0]["id"] == first["id"], "the history", answer)
    # rights and roles
    member = path + "/participants/"
    answer = http(w.a.port, "PATCH", member + eve, ada, {"can_send_messages": False})
    check("PATCH participant can_send_messages: 200", answer.status == 200, "200 with the changed object", answer)
    refused("a member without can_send_messages", post(w.b, eve, g["id"]), 403)
    answer = http(w.a.port, "PATCH", member + eve, ada, {"can_send_messages": True, "role": "admin"})
    check("PATCH participant role: 200", answer.status == 200 and "admin" in json.dumps(answer.json), "200", answer)
    check("…and may send again at once on another node", post(w.b, eve, g["id"]).status == 201, "201", "")
    refused("PATCH participant by a plain member", http(w.b.port, "PATCH", member + eve, bob, {"role": "member"}), 403)
    refused("an unknown role", http(w.b.port, "PATCH", member + bob, ada, {"role": "king"}), (400, 422))
    muted = "2099-01-01T00:00:00.000Z"
    answer = http(w.b.port, "PATCH", member + bob, bob, {"muted_until": muted})
    check("PATCH muted_until by oneself: 200", answer.status == 200, "200", answer)
    check("…it stands in me", http(w.a.port, "GET", path, bob)["me"]["muted_until"] == muted, muted, http(w.a.port, "GET", path, bob)["me"])
    refused("muted_until of another", http(w.b.port, "PATCH", member + bob, ada, {"muted_until": muted}), (400, 403, 422))
    # removal
    answer = http(w.a.port, "DELETE", member + dan, ada)
    check("DELETE participant: removed", answer.status in (200, 204), "204 or 200", answer)
    refused("the removed one cannot read", http(w.b.port, "GET", path, dan), 404)
    refused("the removed one cannot send", post(w.b, dan, g["id"]), 404)
    answer = http(w.a.port, "DELETE", member + ada, ada)
    check("the owner leaves", answer.status in (200, 204), "204 or 200", answer)
    answer = http(w.b.port, "GET", path, eve)
    check("the last owner's leaving makes the oldest admin owner", answer["me"]["role"] == "owner", "eve is owner", answer)

    def seqs():
        with watch.more:
            return sorted({e["payload"]["seq"] for e in watch.events if e["type"] in ("conversation_updated", "new_message")
                           and (e["payload"].get("conversation") or {}).get("id", (e["payload"].get("message") or {}).get("conversation_id")) == g["id"]})

    want = list(range(1, answer["last_seq"] + 1))  # across nodes they may come in another order
    until(lambda: seqs() == want)
    check("the conversation's changes all come, without gaps in seq", seqs() == want, want, seqs())
    # the list
    more = [group(w.a, bob, title=f"g{i}") for i in range(3)]
    sent(w.a, ada, c["id"], "newest")
    pages, cursor = [], None
    for _ in range(10):
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        answer = http(w.b.port, "GET", "/api/v1/conversations?" + urllib.parse.urlencode(query), bob)
        if not check("GET conversations: {conversations, next_cursor}", answer.status == 200 and has(answer.json, ["conversations", "next_cursor"])
                     and all(has(x, CONVERSATION) for x in answer["conversations"]), "shape", answer):
            break
        pages += [x["id"] for x in answer["conversations"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    check("the list is newest activity first, each once", pages == [c["id"], *reversed(more), g["id"]], [c["id"], *reversed(more), g["id"]], pages)
    answer = http(w.b.port, "GET", "/api/v1/conversations?limit=1", bob)["conversations"][0]
    check("unread_count and last_message", answer["unread_count"] == 1 and answer["last_message"]["content"] == "newest" and has(answer["last_message"], MESSAGE), "1, newest", answer)
    refused("conversations with limit 201", http(w.b.port, "GET", "/api/v1/conversations?limit=201", bob), (400, 422))


def messages(w):
    ada, bob, eve = uid(), uid(), uid()
    g = group(w.a, ada, bob)
    other = group(w.a, ada, bob)
    watch, second = WS(w.b.port, bob, "phone"), WS(w.b.port, ada, "tablet")
    watch.wait("hello"), second.wait("hello")
    answer = post(w.a, ada, g, "One", client_message_id="m-1", metadata={"k": [1, {"x": None}]}, whatever=True)
    m = answer.json or {}
    check("send: 201 with the message", answer.status == 201 and has(m, MESSAGE) and is_uuid(m["id"]) and m["sender_id"] == ada and m["seq"] == 2
          and m["change_seq"] == 2 and m["client_message_id"] == "m-1" and m["content"] == "One" and m["message_type"] == "text" and is_time(m["created_at"])
          and m["edited_at"] is None and m["deleted_at"] is None and m["parent_message_id"] is None and m["reply_count"] == 0 and m["metadata"] == {"k": [1, {"x": None}]}, "201, shape of Message", answer)
    p = watch.wait("new_message", of(m))
    check("new_message {type, message, seq, timestamp} on the other node", p and p.get("type") == "new_message" and p.get("message") == m
          and p.get("seq") == m["seq"] and is_time(p.get("timestamp")), "the message as answered", p or watch.tail())
    check("the sender's other device has it too", second.wait("new_message", of(m)), "new_message", second.tail())
    p = second.wait("message_delivered", covers(m, bob))
    check("message_delivered for full clients: also conversation_id, from_seq, up_to_seq", p and has(p, ["message_id", "user_id", "timestamp", "conversation_id", "from_seq", "up_to_seq"])
          and p["message_id"] == m["id"] and is_time(p["timestamp"]), "event", p or second.tail())
    # idempotency
    again = post(w.b, ada, g, "One", client_message_id="m-1", metadata={"k": [1, {"x": None}]})
    check("the same client_message_id and body on another node: 200 with the first", again.status == 200 and again["id"] == m["id"], "200", again)
    refused("…with another body", post(w.b, ada, g, "Two", client_message_id="m-1"), 422)
    refused("…in another conversation", post(w.b, ada, other, "One", client_message_id="m-1"), 422)
    check("the same client_message_id of another sender is another message", post(w.b, bob, g, "One", client_message_id="m-1").status == 201, "201", "")
    body = {"conversation_id": g, "content": "Key", "message_type": "text"}
    one = http(w.a.port, "POST", "/api/v1/messages", ada, body, {"Idempotency-Key": "key-1"})
    two = http(w.b.port, "POST", "/api/v1/messages", ada, body, {"Idempotency-Key": "key-1"})
    check("Idempotency-Key: 201, then 200 with the first", one.status == 201 and two.status == 200 and one["id"] == two["id"] and one["client_message_id"] == "key-1", "201/200", [one, two])
    refused("Idempotency-Key with another body", http(w.b.port, "POST", "/api/v1/messages", ada, {**body, "content": "x"}, {"Idempotency-Key": "key-1"}), 422)
    # one message
    answer = http(w.b.port, "GET", f"/api/v1/messages/{m['id']}", bob)
    check("GET message", answer.status == 200 and answer.json == m, "the message", answer)
    refused("GET a foreign message", http(w.b.port, "GET", f"/api/v1/messages/{m['id']}", eve), 404)
    refused("GET an unknown message", http(w.b.port, "GET", f"/api/v1/messages/{uid()}", eve), 404)
    refused("an id that is no UUID", http(w.b.port, "GET", "/api/v1/messages/x", eve), (400, 404, 422))
    # edit
    answer = http(w.a.port, "PUT", f"/api/v1/messages/{m['id']}", ada, {"content": "One, edited", "mentions": [{"user_id": bob, "offset": 0, "length": 3}]})
    e = answer.json or {}
    check("PUT: 200 with the edited message", answer.status == 200 and has(e, MESSAGE) and e["content"] == "One, edited" and is_time(e["edited_at"])
          and e["seq"] == m["seq"] and e["change_seq"] > m["seq"] and e["mentions"] == [{"user_id": bob, "offset": 0, "length": 3}], "200, change_seq moves", answer)
    p = watch.wait("message_updated", of(m))
    check("message_updated {type, message, seq, timestamp}", p and p.get("type") == "message_updated" and p.get("message") == e and p.get("seq") == e["change_seq"] and is_time(p.get("timestamp")), "event", p or watch.tail())
    answer = http(w.b.port, "PUT", f"/api/v1/messages/{m['id']}", ada, {"content": "One, edited twice"})
    check("PUT: mentions left out are dropped", answer.status == 200 and not answer["mentions"], "no mentions", answer)
    answer = http(w.b.port, "GET", f"/api/v1/messages/{m['id']}/edits", bob)
    check("GET edits keeps earlier versions", answer.status == 200 and [x.get("content") for x in answer["edits"] or []] in (["One", "One, edited"], ["One, edited", "One"]), "edits with both", answer)
    check("…a list has next_cursor", has(answer.json, ["edits", "next_cursor"]), "lists are {<name>: [...], next_cursor}", answer)
    refused("edit of another's message", http(w.b.port, "PUT", f"/api/v1/messages/{m['id']}", bob, {"content": "x"}), 403)
    refused("edit of a foreign message", http(w.b.port, "PUT", f"/api/v1/messages/{m['id']}", eve, {"content": "x"}), 404)
    refused("delete of another's message", http(w.b.port, "DELETE", f"/api/v1/messages/{m['id']}", bob), 403)
    refused("delete of a foreign message", http(w.b.port, "DELETE", f"/api/v1/messages/{m['id']}", eve), 404)
    # delete
    answer = http(w.a.port, "DELETE", f"/api/v1/messages/{m['id']}", ada)
    d = answer.json or {}
    check("DELETE: 200 with the deleted message, emptied", answer.status == 200 and has(d, MESSAGE) and d["content"] is None and d["mentions"] is None and d["metadata"] is None
          and is_time(d["deleted_at"]) and d["seq"] == m["seq"], "200, null content, mentions, metadata", answer)
    p = watch.wait("message_deleted", of(m))
    check("message_deleted {type, message, seq, timestamp}", p and p.get("type") == "message_deleted" and p["message"]["content"] is None and p["seq"] == p["message"]["change_seq"] and is_time(p["timestamp"]), "event", p or watch.tail())
    answer = http(w.b.port, "GET", f"/api/v1/conversations/{g}/messages", bob)
    check("a deleted message keeps its place", m["id"] in [x["id"] for x in answer["messages"]], "in the history", answer)
    answer = http(w.b.port, "GET", f"/api/v1/messages/{m['id']}/edits", bob)
    check("…and its earlier contents are not shown any more", "One" not in json.dumps(answer.json), "no contents", answer)
    again = post(w.b, ada, g, "One", client_message_id="m-1", metadata={"k": [1, {"x": None}]})
    check("a repeat after the deletion still gives the first message", again.status == 200 and again["id"] == m["id"], "200", again)
    refused("edit of a deleted message", http(w.b.port, "PUT", f"/api/v1/messages/{m['id']}", ada, {"content": "x"}), (404, 409, 410, 422))
    # threads
    parent = sent(w.a, ada, g, "Parent")
    replies = [sent(w.b, bob, g, f"Reply {i}", parent_message_id=parent["id"]) for i in range(3)]
    check("a reply names its parent", replies[0]["parent_message_id"] == parent["id"], parent["id"], replies[0])
    check("reply_count", http(w.a.port, "GET", f"/api/v1/messages/{parent['id']}", ada)["reply_count"] == 3, "3", "")
    answer = http(w.a.port, "GET", f"/api/v1/conversations/{g}/messages?parent_message_id={parent['id']}", ada)
    check("history of a thread, newest first", [x["id"] for x in answer["messages"]] == [x["id"] for x in reversed(replies)] and answer["has_more"] is False, "3 replies", answer)
    foreign = sent(w.a, ada, other, "elsewhere")
    refused("a parent in another conversation", post(w.a, ada, g, "x", parent_message_id=foreign["id"]), (400, 422), "parent_message_id")
    refused("an unknown parent", post(w.a, ada, g, "x", parent_message_id=uid()), (400, 404, 422))
    # mentions, media, location
    answer = post(w.a, ada, g, "😀 @bob", mentions=[{"user_id": bob, "offset": 3, "length": 4}])
    check("a mention counts in UTF-16 units", answer.status == 201 and answer["mentions"] == [{"user_id": bob, "offset": 3, "length": 4}], "201", answer)
    refused("a mention outside the content", post(w.a, ada, g, "😀 @bob", mentions=[{"user_id": bob, "offset": 4, "length": 4}]), (400, 422), "mentions")
    refused("a mention of a non-member", post(w.a, ada, g, "@eve", mentions=[{"user_id": eve, "offset": 0, "length": 4}]), (400, 422), "mentions")
    refused("more than 100 mentions", post(w.a, ada, g, "@bob", mentions=[{"user_id": bob, "offset": 0, "length": 4}] * 101), (400, 422), "mentions")
    for kind in ("image", "video", "audio", "file"):
        media = {"media_url": "https://cdn.example/x", "duration": 12.5, "size": 3}
        answer = post(w.a, ada, g, "caption", kind, metadata=media)
        check(f"{kind} with media_url", answer.status == 201 and answer["metadata"] == media, "201, metadata as sent", answer)
        refused(f"{kind} without media_url", post(w.a, ada, g, "caption", kind), (400, 422), "media")
    refused("media_url that is not http/https", post(w.a, ada, g, "x", "image", metadata={"media_url": "javascript:alert(1)"}), (400, 422), "media")
    answer = post(w.a, ada, g, "here", "location", metadata={"latitude": 52.5, "longitude": 13.4})
    check("location", answer.status == 201 and answer["metadata"] == {"latitude": 52.5, "longitude": 13.4}, "201", answer)
    refused("location out of range", post(w.a, ada, g, "here", "location", metadata={"latitude": 91, "longitude": 13.4}), (400, 422))
    refused("location without longitude", post(w.a, ada, g, "here", "location", metadata={"latitude": 1}), (400, 422))
    refused("an unknown message_type", post(w.a, ada, g, "x", "sticker"), (400, 422), "message_type")
    refused("send to a foreign conversation", post(w.a, eve, g), 404)
    refused("send to an unknown conversation", post(w.a, eve, uid()), 404)


def history(w):
    ada, bob = uid(), uid()
    g = group(w.a, ada, bob)
    all_ = [sent((w.a, w.b)[i % 2], ada, g, f"m{i}") for i in range(12)]
    ids = [m["id"] for m in all_]
    path = f"/api/v1/conversations/{g}/messages"

    def page(query):
        answer = http(w.b.port, "GET", path + query, bob)
        return [m["id"] for m in answer["messages"] or []], answer["has_more"], answer

    got, more, answer = page("")
    check("history newest first, {messages, has_more}", answer.status == 200 and got == ids[::-1] and more is False, "12 messages", answer)
    check("…each of the shape of Message", all(has(m, MESSAGE) for m in answer["messages"]), "shape", answer)
    got, more, answer = page(f"?limit=5&before_id={ids[8]}")
    check("before_id", got == ids[7:2:-1] and more is True, "m7..m3, has_more", answer)
    got, more, answer = page(f"?limit=5&before_id={ids[2]}")
    check("before_id to the end", got == ids[1::-1] and more is False, "m1, m0, no more", answer)
    got, more, answer = page(f"?limit=5&after_id={ids[3]}")
    check("after_id: the next ones, newest first", got == ids[8:3:-1] and more is True, "m8..m4, has_more", answer)
    got, more, answer = page(f"?limit=5&after_id={ids[8]}")
    check("after_id to the end", got == ids[11:8:-1] and more is False, "m11..m9, no more", answer)
    got, more, answer = page(f"?limit=5&around_id={ids[6]}")
    check("around_id holds the message and both sides", len(got) == 5 and ids[6] in got and ids[5] in got and ids[7] in got and got == sorted(got, key=ids.index, reverse=True), "5 around m6, newest first", answer)
    refused("limit above 200", http(w.b.port, "GET", path + "?limit=201", bob), (400, 422), "limit")
    refused("limit 0 or no number", http(w.b.port, "GET", path + "?limit=x", bob), (400, 422))
    refused("before_id of another conversation", http(w.b.port, "GET", path + f"?before_id={uid()}", bob), (400, 404, 422))
    refused("history of a foreign conversation", http(w.b.port, "GET", path, uid()), 404)


def classic(w):
    ada, bob = uid(), uid()
    c = direct(w.a, ada, bob)
    a, b = WS(w.a.port, ada, "a-phone", full=False), WS(w.b.port, bob, "b-phone", full=False)
    af = WS(w.b.port, ada, "a-full")
    check("without a subprotocol none is echoed", "sec-websocket-protocol" not in a.headers, "no header", a.headers)
    p = a.wait("hello")
    check("a classic client is told hello", p is not None, "hello", a.tail())
    b.wait("hello"), af.wait("hello")
    m = sent(w.a, ada, c, "From the phone")
    p = b.wait("new_message", of(m))
    check("classic new_message {type, message, timestamp}", p and p.get("type") == "new_message" and has(p["message"], MESSAGE) and is_time(p.get("timestamp")), "payload of part A", p or b.tail())
    p = a.wait("message_delivered", by_id(m, bob))
    check("classic message_delivered {message_id, user_id, timestamp}", p and is_time(p.get("timestamp")), "payload of part A", p or a.tail())
    b.send("read_receipt", {"message_id": m["id"]})
    p = a.wait("message_read", by_id(m, bob))
    check("classic read_receipt without ref → message_read for the sender", p and is_time(p.get("timestamp")), "message_read", p or a.tail())
    p = af.wait("message_read", covers(m, bob))
    check("…full clients have the run", p, "conversation_id, from_seq, up_to_seq", p or af.tail())
    b.send("typing", {"conversation_id": c, "is_typing": True})
    p = a.wait("typing", lambda p: p.get("user_id") == bob)
    check("classic typing {conversation_id, user_id, timestamp}", p and p.get("conversation_id") == c and is_time(p.get("timestamp")), "typing", p or a.tail())
    p = af.wait("typing", lambda p: p.get("user_id") == bob)
    check("full typing also has is_typing", p and p.get("is_typing") is True, "is_typing true", p or af.tail())
    b.send("ping")
    p = b.wait("pong")
    check("ping without payload → pong {timestamp}", p and is_time(p.get("timestamp")), "pong", p or b.tail())
    with b.more:
        check("no answer to commands without ref", not [e for e in b.events if e["type"] in ("ok", "error")], "no ok/error", b.tail())
    edited = http(w.a.port, "PUT", f"/api/v1/messages/{m['id']}", ada, {"content": "Edited"})
    check("classic message_updated", edited.status == 200 and b.wait("message_updated", of(m)), "event", b.tail())
    http(w.a.port, "DELETE", f"/api/v1/messages/{m['id']}", ada)
    check("classic message_deleted", b.wait("message_deleted", of(m)), "event", b.tail())
    # the run of a reader who was away: one event each for classic, one for all for full
    b.leave()
    run = [sent(w.a, ada, c, f"run {i}") for i in range(3)]
    answer = http(w.b.port, "POST", f"/api/v1/messages/{run[2]['id']}/read", bob)
    check("POST read: 204", answer.status == 204 and not answer.body, "204 without a body", answer)
    good = all(a.wait("message_read", by_id(x, bob)) for x in run)
    check("classic: one message_read for each message of the run", good, "three events", a.tail())
    p = af.wait("message_read", covers(run[0], bob))
    check("full: one message_read for the run", p and p["up_to_seq"] >= run[2]["seq"] and af.count("message_read", lambda p: (p.get("up_to_seq") or 0) >= run[0]["seq"]) == 1, "one event", p or af.tail())
    # typing over REST, and what a classic client is not told
    b = WS(w.b.port, bob, "b-phone", full=False)
    b.wait("hello")
    answer = http(w.a.port, "POST", f"/api/v1/conversations/{c}/typing", ada, {"is_typing": True})
    check("POST typing: 204", answer.status == 204, "204", answer)
    check("…told to a classic client", b.wait("typing", lambda p: p.get("user_id") == ada), "typing", b.tail())
    g = group(w.a, ada, bob)
    http(w.a.port, "PATCH", f"/api/v1/conversations/{g}", ada, {"title": "T2"})
    last = sent(w.a, ada, g, "after changes")
    b.wait("new_message", of(last))
    known = set(b.kinds()) | set(a.kinds())
    check("classic clients get no events beyond those named", known <= CLASSIC, "no conversation_updated, presence, resync", sorted(known - CLASSIC))
    # a classic client may send by socket, too, and with refs
    kind, p = b.ask("send_message", {"conversation_id": c, "content": "by socket", "message_type": "text"})
    check("classic send_message with ref → ok {message}", kind == "ok" and has(p.get("message"), MESSAGE), "ok", (kind, p))
    if kind == "ok":
        check("…arrives at the classic client on the other node", a.wait("new_message", of(p["message"])), "new_message", a.tail())
    check("the originating session is not told its own message", not b.find("new_message", of(p.get("message") or {"id": 0})), "no echo", "echo")
    # no device id: the device is named after the session
    x = WS(w.a.port, bob, full=False)
    p = x.wait("hello")
    check("without X-Device-ID the device is named after the session", p and p["device_id"] and p["session_id"] in p["device_id"], "device_id holds session_id", p)
    x = handshake(w.a.port, full=False, query={"user_id": bob, "device_id": "tab", "platform": "web", "app_version": "9"})
    p = x.wait("hello") if isinstance(x, WS) else None
    check("dev mode: identity by query for browsers", p and p["user_id"] == bob and p["device_id"] == "tab", "hello of bob, tab", p or x)


def full(w):
    ada, bob = uid(), uid()
    c = direct(w.a, ada, bob)
    a, b = WS(w.a.port, ada, "a1"), WS(w.b.port, bob, "b1")
    check("the subprotocol is echoed", a.headers.get("sec-websocket-protocol") == FULL, FULL, a.headers)
    p, q = a.wait("hello"), b.wait("hello")
    check("hello is first, with all its fields", p and a.events[0]["type"] == "hello" and has(p, HELLO) and p["user_id"] == ada and p["device_id"] == "a1"
          and isinstance(p["limits"], dict) and isinstance(p["heartbeat_seconds"], (int, float)) and is_time(p["server_time"]), "hello", p)
    check("store_epoch is the same on both nodes, node_id is the node's", p["store_epoch"] == q["store_epoch"] and (p["node_id"] != q["node_id"]) == w.cluster, "", (p, q))
    body = {"conversation_id": c, "content": "Hi", "message_type": "text", "client_message_id": "s-1"}
    kind, p = a.ask("send_message", body)
    m = p["message"] if kind == "ok" else {}
    check("send_message → ok {message}", kind == "ok" and has(m, MESSAGE) and m["client_message_id"] == "s-1", "ok", (kind, p))
    check("…arrives on the other node", b.wait("new_message", of(m)), "new_message", b.tail())
    check("…is proven delivered", a.wait("message_delivered", covers(m, bob)), "message_delivered", a.tail())
    kind, p = a.ask("send_message", body)
    check("send_message repeated → the first", kind == "ok" and p["message"]["id"] == m["id"], "ok", (kind, p))
    check("…also by REST: 200", http(w.b.port, "POST", "/api/v1/messages", ada, body).status == 200, "200", "")
    kind, p = a.ask("send_message", {**body, "content": "Other"})
    check("send_message, same id, other body → error 422", kind == "error" and is_problem(p, (422,)), "problem 422", (kind, p))
    kind, p = a.ask("edit_message", {"message_id": m["id"], "content": "Hi!"})
    check("edit_message → ok {message}", kind == "ok" and p["message"]["content"] == "Hi!", "ok", (kind, p))
    check("…message_updated on the other node", b.wait("message_updated", of(m)), "event", b.tail())
    kind, p = b.ask("edit_message", {"message_id": m["id"], "content": "x"})
    check("edit_message of another's → error 403", kind == "error" and is_problem(p, (403,)), "problem 403", (kind, p))
    kind, p = b.ask("read_receipt", {"message_id": m["id"]})
    check("read_receipt → ok {}", kind == "ok" and p == {}, "ok {}", (kind, p))
    p = a.wait("message_read", covers(m, bob))
    check("message_read for the sender, {message_id, user_id, timestamp, …}", p and p.get("message_id") == m["id"] and is_time(p.get("timestamp")), "event", p or a.tail())
    check("read implies delivered", next(x for x in http(w.a.port, "GET", f"/api/v1/conversations/{c}", ada)["members"] if x["user_id"] == bob)["delivered_seq"] >= m["seq"], "delivered_seq", "")
    kind, p = b.ask("typing", {"conversation_id": c, "is_typing": True})
    check("typing → ok {}", kind == "ok" and p == {}, "ok {}", (kind, p))
    check("typing event", a.wait("typing", lambda p: p["is_typing"] is True and p["user_id"] == bob and p["conversation_id"] == c), "typing", a.tail())
    b.ask("typing", {"conversation_id": c, "is_typing": False})
    check("typing's end", a.wait("typing", lambda p: p["is_typing"] is False and p["user_id"] == bob), "typing false", a.tail())
    kind, p = a.ask("ping")
    check("ping with ref → ok {}, and pong", kind == "ok" and p == {} and is_time((a.wait("pong") or {}).get("timestamp")), "ok {} and pong", (kind, p))
    kind, p = a.ask("delete_message", {"message_id": m["id"]})
    check("delete_message → ok {message}", kind == "ok" and p["message"]["content"] is None, "ok", (kind, p))
    check("…message_deleted on the other node", b.wait("message_deleted", of(m)), "event", b.tail())
    kind, p = a.ask("send_message", {"conversation_id": uid(), "content": "x", "message_type": "text"})
    check("send_message to an unknown conversation → error 404", kind == "error" and is_problem(p, (404,)), "problem 404", (kind, p))
    kind, p = a.ask("nonsense", {})
    check("an unknown command → error with ref", kind == "error" and is_problem(p, (400, 404, 422)), "problem", (kind, p))
    a.send("nonsense", {})
    check("…without ref: an error without ref", until(lambda: any(e["type"] == "error" and e.get("ref") is None for e in list(a.events))), "error", a.tail())
    kind, p = a.ask("refresh_token", {"token": "x"})
    check("refresh_token in dev mode is an error (or ok)", kind in ("error", "ok"), "an answer", (kind, p))
    # acks
    x, y = uid(), uid()
    g = group(w.a, ada, x, y)
    sx, sy = WS(w.b.port, x, "x", query={"features": "acks"}), WS(w.b.port, y, "y")
    sx.wait("hello"), sy.wait("hello")
    m = sent(w.a, ada, g, "ack me")
    sx.wait("new_message", of(m)), a.wait("message_delivered", covers(m, y))
    answer = http(w.a.port, "GET", f"/api/v1/messages/{m['id']}/receipts", ada)
    rows = {r["user_id"]: r for r in answer["receipts"] or []}
    check("GET receipts: [{user_id, delivered_at, read_at}], next_cursor", answer.status == 200 and has(answer.json, ["receipts", "next_cursor"]) and set(rows) == {x, y}
          and all(has(r, ["delivered_at", "read_at"]) for r in rows.values()) and is_time(rows[y]["delivered_at"]) and rows[y]["read_at"] is None, "x and y", answer)
    check("features=acks: nothing is delivered without its ack", rows.get(x, {}).get("delivered_at") is None, "null", answer)
    kind, p = sx.ask("ack", {"conversations": {g: m["seq"]}})
    check("ack → ok without payload", kind == "ok" and not p, "ok", (kind, p))
    check("ack → message_delivered for the sender", a.wait("message_delivered", covers(m, x)), "event", a.tail())
    # The answer says that it was taken; what is refused moves nothing, as the receipts show below.
    sx.ask("ack", {"conversations": {g: m["seq"] + 1000}}), sx.ask("ack", {"conversations": {c: 1}})
    n = sent(w.a, ada, g, "not acked")
    sx.wait("new_message", of(n)), a.wait("message_delivered", covers(n, y))
    answer = http(w.a.port, "GET", f"/api/v1/messages/{n['id']}/receipts", ada)
    check("…and moves nothing", [r["delivered_at"] for r in answer["receipts"] if r["user_id"] == x] == [None], "delivered_at null", answer)
    http(w.b.port, "POST", f"/api/v1/messages/{m['id']}/read", x)
    row = until(lambda: next((r for r in http(w.a.port, "GET", f"/api/v1/messages/{m['id']}/receipts", ada)["receipts"] if r["user_id"] == x and is_time(r["read_at"])), None))
    check("receipts show read_at", row, "read_at", row)
    refused("receipts of a foreign message", http(w.a.port, "GET", f"/api/v1/messages/{m['id']}/receipts", bob), 404)
    # delivered by REST: a phone woken by a push
    z = uid()
    c = direct(w.a, ada, z)
    m = sent(w.a, ada, c, "wake up")
    answer = http(w.b.port, "POST", f"/api/v1/messages/{m['id']}/delivered", z)
    check("POST delivered: 204", answer.status == 204, "204", answer)
    check("…message_delivered for the sender", a.wait("message_delivered", covers(m, z)), "event", a.tail())
    refused("POST delivered of a foreign message", http(w.b.port, "POST", f"/api/v1/messages/{m['id']}/delivered", bob), 404)
    refused("POST read of a foreign message", http(w.b.port, "POST", f"/api/v1/messages/{m['id']}/read", bob), 404)
    refused("POST typing in a foreign conversation", http(w.b.port, "POST", f"/api/v1/conversations/{c}/typing", bob, {"is_typing": True}), 404)


def presence(w):
    ada, bob, eve = uid(), uid(), uid()
    direct(w.a, ada, bob)
    a = WS(w.a.port, ada, "a")
    e = WS(w.b.port, eve, "e")
    a.wait("hello"), e.wait("hello")
    kind, p = a.ask("watch_presence", {"user_ids": [bob, eve]})
    check("watch_presence → ok {presence}, strangers left out", kind == "ok" and [x["user_id"] for x in p["presence"]] == [bob]
          and has(p["presence"][0], ["online", "devices", "last_seen"]) and p["presence"][0]["online"] is False, "bob, offline", (kind, p))
    b = WS(w.b.port, bob, "b-phone")
    b.wait("hello")
    p = a.wait("presence", lambda p: p["user_id"] == bob and p["online"] is True)
    check("presence {user_id, online, last_seen} when the first device comes", has(p, ["last_seen"]), "event", p or a.tail())
    answer = http(w.a.port, "GET", f"/api/v1/presence?user_ids={bob},{eve}", ada)
    row = (answer["presence"] or [{}])[0]
    check("GET presence: online, devices; strangers left out", answer.status == 200 and len(answer["presence"]) == 1 and row["user_id"] == bob and row["online"] is True
          and [(d["device_id"], d["platform"]) for d in row["devices"]] == [("b-phone", "ios")], "bob with b-phone on ios", answer)
    second = WS(w.a.port, bob, "b-tablet")
    second.wait("hello")
    answer = until(lambda: (lambda r: r if len(r["presence"][0]["devices"]) == 2 else None)(http(w.b.port, "GET", f"/api/v1/presence?user_ids={bob}", ada)))
    check("GET presence shows devices on both nodes", answer, "two devices", answer)
    b.leave()
    answer = until(lambda: (lambda r: r if len(r["presence"][0]["devices"]) == 1 else None)(http(w.b.port, "GET", f"/api/v1/presence?user_ids={bob}", ada)))
    check("one device left, still online", answer and a.count("presence", lambda p: p["user_id"] == bob and not p["online"]) == 0, "online", a.tail())
    second.leave()
    p = a.wait("presence", lambda p: p["user_id"] == bob and p["online"] is False)
    check("presence when the last device goes", p and is_time(p["last_seen"]), "event with last_seen", p or a.tail())
    answer = http(w.b.port, "GET", f"/api/v1/presence?user_ids={bob}", ada)
    check("GET presence afterwards", answer["presence"][0]["online"] is False and answer["presence"][0]["devices"] == [] and is_time(answer["presence"][0]["last_seen"]), "offline with last_seen", answer)
    kind, p = a.ask("watch_presence", {"user_ids": [uid() for _ in range(101)]})
    check("watch_presence of 101 is refused", kind == "error" and is_problem(p, (400, 422)), "problem 400/422", (kind, p))
    refused("GET presence of 101", http(w.a.port, "GET", "/api/v1/presence?user_ids=" + ",".join(uid() for _ in range(101)), ada), (400, 422))


def sessions(w):
    ada, bob = uid(), uid()
    # tickets
    answer = http(w.a.port, "POST", "/api/v1/ws-tickets", ada)
    check("POST ws-tickets: 201 {ticket, expires_in}", answer.status == 201 and isinstance(answer["ticket"], str) and answer["expires_in"] > 0, "201", answer)
    s = handshake(w.b.port, query={"ticket": answer["ticket"], "device_id": "page", "platform": "web"})
    p = s.wait("hello") if isinstance(s, WS) else None
    check("a ticket opens a socket on the other node", p and p["user_id"] == ada, "hello of ada", p or s)
    s = handshake(w.a.port, query={"ticket": answer["ticket"]})
    check("…once", isinstance(s, Answer) and s.status == 401, "401", s)
    # replacement, also across nodes
    one = WS(w.a.port, bob, "phone")
    one.wait("hello")
    two = WS(w.b.port, bob, "phone")
    check("the new session of a device is told hello", two.wait("hello"), "hello", two.tail())
    check("…the older one on the other node closes with 4409", one.wait_close() == 4409, "4409", (one.close_code, one.close_reason))
    three = WS(w.b.port, bob, "phone", full=False)
    check("…also on the same node", two.wait_close() == 4409, "4409", (two.close_code, two.close_reason))
    check("…and the newest stays", three.wait("hello") and three.alive(), "alive", three.tail())
    # device limit
    eve = uid()
    devices = []
    for i in range(10):
        devices.append(WS((w.a, w.b)[i % 2].port, eve, f"d{i}"))
        devices[-1].wait("hello")
    eleventh = handshake(w.b.port, eve, "d10")
    if isinstance(eleventh, WS):
        until(lambda: [d for d in devices + [eleventh] if d.close_code], 5)
        codes = [d.close_code for d in devices + [eleventh] if d.close_code]
        check("the eleventh device: one closes with 4429", codes == [4429], "[4429]", codes)
    else:
        check("the eleventh device: one closes with 4429", False, "a socket that closes with 4429", eleventh)
    check("…a known device may still come back", WS(w.a.port, eve, "d0").wait("hello"), "hello", "")
    for d in devices:
        d.cut()
    # cut off by the operator
    dan = uid()
    x, y = WS(w.a.port, dan, "x"), WS(w.b.port, dan, "y")
    x.wait("hello"), y.wait("hello")
    answer = http(w.a.admin, "POST", "/admin/v1/disconnect", body={"user_id": dan, "device_id": "y"})
    check("POST /admin/v1/disconnect of a device: 204", answer.status == 204, "204", answer)
    check("…closes it with 4403 on the other node", y.wait_close() == 4403, "4403", (y.close_code, y.close_reason))
    check("…and no other device", x.alive(), "alive", x.tail())
    http(w.b.admin, "POST", "/admin/v1/disconnect", body={"user_id": dan})
    check("disconnect of a user closes with 4403", x.wait_close() == 4403, "4403", (x.close_code, x.close_reason))
    check("the close reason is JSON or empty, at most 123 bytes", not x.close_reason or (len(x.close_reason.encode()) <= 123 and isinstance(json.loads(x.close_reason), dict)), "JSON", x.close_reason)
    answer = http(w.a.admin, "POST", "/admin/v1/disconnect", body={"user_id": "x"})
    check("disconnect with nonsense is refused", answer.status in (400, 422), "400/422", answer)


def sync(w):
    ada, bob = uid(), uid()
    b = WS(w.b.port, bob, "phone")
    epoch = b.wait("hello")["store_epoch"]
    kept, quiet, lost = group(w.a, ada, bob), group(w.a, ada, bob), group(w.a, ada, bob)
    m0 = sent(w.a, ada, kept, "before")
    md = sent(w.a, ada, kept, "to be deleted")
    q0 = sent(w.a, ada, quiet, "quiet")
    b.wait("new_message", of(q0)), b.wait("new_message", of(md))
    b.leave()
    cursors = {kept: md["seq"], quiet: q0["seq"], lost: 1}
    # away
    e0 = http(w.a.port, "PUT", f"/api/v1/messages/{m0['id']}", ada, {"content": "edited"}).json
    d0 = http(w.a.port, "DELETE", f"/api/v1/messages/{md['id']}", ada).json
    new = [sent(w.a, ada, kept, f"new {i}") for i in range(5)]
    http(w.a.port, "DELETE", f"/api/v1/conversations/{lost}/participants/{bob}", ada)
    fresh = group(w.a, ada, bob, title="Fresh")
    f0 = sent(w.a, ada, fresh, "first")
    # back, on the other node
    b = WS(w.a.port, bob, "phone")
    check("store_epoch is the same after the absence", b.wait("hello")["store_epoch"] == epoch, epoch, b.tail())
    kind, p = b.ask("sync", {"conversations": cursors, "store_epoch": epoch})
    rows = {x["id"]: x for x in (p or {}).get("conversations", [])} if kind == "ok" else {}
    check("sync → ok {store_epoch, conversations, next_after}", kind == "ok" and has(p, ["store_epoch", "conversations", "next_after"]) and p["store_epoch"] == epoch and p["next_after"] is None, "ok", (kind, p))
    check("…entries in order of id", list(rows) == sorted(rows), "sorted", list(rows))
    r = rows.get(kept, {})
    check("changed: what was missed, in the order of its latest change", r.get("status") == "changed" and [(x["id"], x["content"]) for x in r["messages"]]
          == [(m0["id"], "edited"), (md["id"], None)] + [(x["id"], x["content"]) for x in new] and r["next_seq"] == new[-1]["seq"] and r["more"] is False
          and [x["change_seq"] for x in r["messages"][:2]] == [e0["change_seq"], d0["change_seq"]] and all(has(x, MESSAGE) for x in r["messages"]), "edit, deletion, 5 new", r)
    r = rows.get(quiet, {"status": "absent"})
    check("up_to_date", r["status"] == "up_to_date", "up_to_date", r)
    r = rows.get(lost, {})
    check("gone with left_seq", r.get("status") == "gone" and r.get("left_seq") == 2, "gone, left_seq 2", r)
    r = rows.get(fresh, {})
    check("one the client does not know is listed, with the conversation", r.get("status") == "changed" and has(r.get("conversation"), CONVERSATION) and [x["id"] for x in r["messages"]] == [f0["id"]] and r["next_seq"] == 2, "changed", r)
    answer = http(w.b.port, "POST", "/api/v1/sync", bob, {"conversations": cursors, "store_epoch": epoch})
    check("POST /api/v1/sync answers as the command", answer.status == 200 and {x["id"]: x["status"] for x in answer["conversations"]} == {k: v["status"] for k, v in rows.items()}, "the same", answer)
    # foreign and unknown
    stranger = group(w.a, ada, uid())
    answer = http(w.b.port, "POST", "/api/v1/sync", bob, {"conversations": {stranger: 1, uid(): 5}, "store_epoch": epoch})
    got = [x["status"] for x in answer["conversations"] if x["id"] not in (kept, quiet, lost, fresh)]
    check("conversations of others and unknown ones are gone alike", got == ["gone", "gone"], "gone, gone", answer)
    # reset
    answer = http(w.b.port, "POST", "/api/v1/sync", bob, {"conversations": {kept: 10_000}, "store_epoch": epoch})
    r = next(x for x in answer["conversations"] if x["id"] == kept)
    check("a cursor above the head: reset", r["status"] == "reset" and r["next_seq"] == new[-1]["seq"], "reset", r)
    answer = http(w.b.port, "POST", "/api/v1/sync", bob, {"conversations": {kept: 1, quiet: 1}, "store_epoch": uid()})
    got = {x["id"]: x["status"] for x in answer["conversations"]}
    check("another store_epoch: reset", got.get(kept) == "reset" and got.get(quiet) == "reset", "reset", answer)
    # pages and ranges
    have, at, after, rounds = [], dict(cursors), None, 0
    while rounds < 30:
        rounds += 1
        kind, p = b.ask("sync", {"conversations": at, "store_epoch": epoch, "limit": 2, "after": after})
        if kind == "error" and p.get("retry_ms"):
            time.sleep(p["retry_ms"] / 1000)
            continue
        if kind != "ok":
            break
        for x in p["conversations"]:
            have += [y["id"] for y in x.get("messages") or []]
            if x.get("next_seq") is not None:
                at[x["id"]] = x["next_seq"]
        check("a page keeps its limit", sum(len(x.get("messages") or []) for x in p["conversations"]) <= 2, "<= 2", p)
        after = p["next_after"]
        if after is None:
            break
    want = {m0["id"], md["id"], f0["id"], *(x["id"] for x in new)}
    check("pages add up to exactly what was missed", sorted(have) == sorted(want) and rounds < 30, "each once", (rounds, kind, p if kind != "ok" else have))
    ids = sorted(rows)
    answer = http(w.b.port, "POST", "/api/v1/sync", bob, {"conversations": {}, "after": ids[0], "to": ids[2], "store_epoch": epoch})
    got = [x["id"] for x in answer["conversations"]]
    check("the range (after, to] bounds the answer", set(got) <= set(ids[1:3]) and set(got) == set(ids[1:3]) - {lost}, "ids in the range", got)
    kind, p = b.ask("sync", {"conversations": {uid(): 1 for _ in range(1001)}})
    check("sync of 1,001 conversations is refused", kind == "error" and is_problem(p, (400, 413, 422)), "problem", (kind, p))
    refused("…by REST too", http(w.b.port, "POST", "/api/v1/sync", bob, {"conversations": {uid(): 1 for _ in range(1001)}}), (400, 413, 422))
    refused("sync with limit 201", http(w.b.port, "POST", "/api/v1/sync", bob, {"conversations": {}, "limit": 201}), (400, 422))
    # what a sync brought counts as delivered
    a = WS(w.b.port, ada, "a")
    rows_ = until(lambda: next((x for x in http(w.b.port, "GET", f"/api/v1/messages/{new[-1]['id']}/receipts", ada)["receipts"] if x["delivered_at"]), None))
    check("what a page of sync covers is proven delivered", rows_ and rows_["user_id"] == bob, "delivered_at", rows_)
    # live events after the sync
    live = sent(w.b, ada, kept, "live")
    check("live events flow on", b.wait("new_message", of(live)), "new_message", b.tail())
    # unread counts
    c = group(w.a, ada, bob)
    burst = [sent(w.a, ada, c, "n") for _ in range(3)]
    http(w.a.port, "DELETE", f"/api/v1/messages/{burst[0]['id']}", ada)
    sent(w.b, bob, c, "mine")
    answer = http(w.b.port, "GET", f"/api/v1/conversations/{c}", bob)
    check("unread_count leaves out own and deleted messages", answer["unread_count"] == 2, "2 (others' after read_seq, not deleted)", answer)
    http(w.b.port, "POST", f"/api/v1/messages/{burst[2]['id']}/read", bob)
    answer = until(lambda: (lambda r: r if r["unread_count"] == 0 else None)(http(w.a.port, "GET", f"/api/v1/conversations/{c}", bob)))
    check("…is 0 after reading", answer and answer["me"]["read_seq"] >= burst[2]["seq"] and answer["me"]["delivered_seq"] >= answer["me"]["read_seq"], "0; read implies delivered", answer)
    for _ in range(105):
        sent(w.a, ada, c, "many")
    answer = http(w.b.port, "GET", f"/api/v1/conversations/{c}", bob)
    check("unread_count goes up to 100", answer["unread_count"] == 100, "100", answer["unread_count"])


def offline(w):
    ada, bob, eve = uid(), uid(), uid()
    g = group(w.a, ada, bob, eve)
    e = WS(w.b.port, eve, "e")
    e.wait("hello")
    http(w.b.port, "PATCH", f"/api/v1/conversations/{g}/participants/{bob}", bob, {"muted_until": "2099-01-01T00:00:00.000Z"})
    m = sent(w.a, ada, g, "@bob wake up", mentions=[{"user_id": bob, "offset": 0, "length": 4}])
    e.wait("new_message", of(m))

    def record(kind, message):
        def look():
            for key, headers, value in w.records():
                if (value.get("message") or {}).get("id") == message["id"] and f"tidings.message.{kind}" in json.dumps([headers, value]):
                    return key, headers, value
            return None
        return until(look, 14, 0.3)

    got = record("created", m)
    if not check("an absent member's message becomes an offline record", got, "a record with tidings.message.created", [v for _, _, v in w.records()][-3:]):
        return
    key, headers, value = got
    check("…value {message, change_seq, recipients, reason}", has(value, ["message", "change_seq", "recipients", "reason"]) and has(value["message"], MESSAGE) and value["change_seq"] == m["seq"], "shape", value)
    check("…recipients: the absent one only, mentioned and muted told", value["recipients"] == [{"user_id": bob, "mentioned": True, "muted": True}], "bob, mentioned, muted", value["recipients"])
    check("…keyed by the conversation" if w.cluster else "…names the conversation", key == g if w.cluster else g in json.dumps(value), g, (key, headers))
    check("…headers ce_type and ce_id", "ce_id" in headers and headers.get("ce_type") == "tidings.message.created" if w.cluster else "tidings.message.created" in json.dumps(headers), "CloudEvents", headers)
    http(w.a.port, "PUT", f"/api/v1/messages/{m['id']}", ada, {"content": "edited"})
    got = record("edited", m)
    check("an edit: tidings.message.edited", got and got[2]["message"]["content"] == "edited", "a record", got)
    http(w.a.port, "DELETE", f"/api/v1/messages/{m['id']}", ada)
    got = record("deleted", m)
    check("a deletion: tidings.message.deleted, without content", got and got[2]["message"]["content"] is None, "a record", got)
    # a socket that is open but dead: it never proves what it got
    dan = uid()
    c = direct(w.a, ada, dan)
    d = WS(w.b.port, dan, "d", query={"features": "acks"})
    d.wait("hello")
    m = sent(w.a, ada, c, "never acked")
    got = record("created", m)
    check("what is never proven goes to the offline records after OFFLINE_AFTER", got and got[2]["recipients"][0]["user_id"] == dan, "a record", got)
    eve_records = [v for _, _, v in w.records() if any(r["user_id"] == eve for r in v.get("recipients", [])) and v["message"]["conversation_id"] == g]
    check("who was online has no offline record", eve_records == [], "none", eve_records)


def limits(w):
    ada, bob = uid(), uid()
    g = group(w.a, ada, bob)
    a = WS(w.a.port, ada, "a")
    a.wait("hello")
    path = f"/api/v1/conversations/{g}"
    refused("content above 16 KiB", post(w.a, ada, g, "x" * 16385), (400, 413, 422), "content")
    check("content of 16 KiB is taken", post(w.a, ada, g, "x" * 16384).status == 201, "201", "")
    refused("metadata above 8 KiB", post(w.a, ada, g, "x", metadata={"k": "x" * 8192}), (400, 413, 422), "metadata")
    refused("a body above 64 KiB", post(w.a, ada, g, "x" * 70000), (400, 413, 422))
    refused("client_message_id above 128 bytes", post(w.a, ada, g, client_message_id="x" * 129), (400, 422), "client_message_id")
    check("client_message_id of 128 bytes is taken", post(w.a, ada, g, client_message_id="x" * 128).status == 201, "201", "")
    refused("malformed JSON", http(w.a.port, "POST", "/api/v1/messages", ada, raw=b'{"conversation_id":'), (400, 422))
    refused("JSON that is no object", http(w.a.port, "POST", "/api/v1/messages", ada, raw=b"[]"), (400, 422))
    refused("a missing field", http(w.a.port, "POST", "/api/v1/messages", ada, {"conversation_id": g, "message_type": "text"}), (400, 422))
    refused("a title above 256", http(w.a.port, "PATCH", path, ada, {"title": "x" * 257}), (400, 422), "title")
    refused("user_ids above 100", http(w.a.port, "POST", path + "/participants", ada, {"user_ids": [uid() for _ in range(101)]}), (400, 422), "user_ids")
    answer = handshake(w.a.port, ada, "d" * 129)
    check("a device id above 128", isinstance(answer, Answer) and answer.status in (400, 422), "400/422", answer)
    for name, payload, field in (("content above its limit", {"content": "x" * 16385}, "content"), ("unknown message_type", {"message_type": "sticker"}, "message_type"),
                                 ("mention outside", {"mentions": [{"user_id": bob, "offset": 9, "length": 9}]}, "mentions"), ("media without media_url", {"message_type": "image"}, "media"),
                                 ("client_message_id above 128", {"client_message_id": "x" * 129}, "client_message_id")):
        kind, p = a.ask("send_message", {"conversation_id": g, "content": "x", "message_type": "text", **payload})
        check(f"socket: {name} → error naming the field", kind == "error" and is_problem(p, (400, 413, 422)) and field in str(p.get("field")), f"problem with field {field}", (kind, p))
    check("…the socket stays open", a.alive(), "alive", a.tail())
    a.frame(1, json.dumps({"type": "ping", "ref": "big", "payload": {"x": "y" * 70000}}).encode())
    until(lambda: a.close_code or [e for e in list(a.events) if e.get("type") == "error" and (e.get("payload") or {}).get("status") == 413])
    check("a frame above MAX_FRAME_BYTES: an error and the socket stays open, or 1009", a.close_code == 1009 or (a.close_code is None and a.alive()), "error, or 1009", a.tail())
    check("…which carries its ref and body form", a.close_code == 1009 or [e for e in list(a.events) if e.get("ref") == "big"], "the error has the command's ref", a.tail())
    # the protocol itself
    for name, kind, data, options, codes in (
            ("not UTF-8", 1, b"\xff\xfe\xfd", {}, (1007,)), ("an unmasked frame", 1, b'{"type":"ping"}', {"mask": False}, (1002,)),
            ("reserved bits", 1, b'{"type":"ping"}', {"reserved": 64}, (1002,)), ("a control frame above 125 bytes", 9, b"x" * 126, {}, (1002,)),
            ("an unknown opcode", 3, b"x", {}, (1002,)), ("a continuation of nothing", 0, b"x", {}, (1002,))):
        s = WS(w.b.port, uid(), "p")
        s.wait("hello")
        s.frame(kind, data, **options)
        check(f"{name} → close {codes[0]}", s.wait_close() in codes, codes, (s.close_code, s.close_reason))
    s = WS(w.b.port, uid(), "p")
    s.wait("hello")
    try:
        s.frame(1, b'{"type":"' + b"x" * 30000, fin=False)
        for _ in range(3):
            s.frame(0, b"x" * 30000, fin=False)
        s.frame(0, b'"}')
    except OSError:
        pass
    until(lambda: s.close_code or s.find("error"))
    check("120 KB in fragments: 413 or close 1009", s.close_code == 1009 or ((s.find("error") or {}).get("payload") or {}).get("status") == 413, "413 or 1009", s.tail())
    s = WS(w.b.port, uid(), "p")
    s.wait("hello")
    try:
        for i in range(40):
            s.frame(0 if i else 1, b"x" * 30000, fin=False)
    except OSError:
        pass
    check("fragmented without end → close 1009", s.wait_close() == 1009, 1009, (s.close_code, s.close_reason))
    s = WS(w.b.port, uid(), "p")
    s.wait("hello")
    s.frame(1, b'{"type":"pi', fin=False)
    s.frame(9, b"between")
    s.frame(0, b'ng","ref":"f"}')
    check("a fragmented command is put together", until(lambda: [e for e in list(s.events) if e.get("ref") == "f" and e["type"] == "ok"]), "ok", s.tail())
    s.leave()
    check("a client's close is answered", s.close_code == 1000, 1000, s.close_code)
    s = WS(w.b.port, uid(), "p")
    s.wait("hello")
    s.text("{nonsense")
    check("malformed JSON → error, the socket stays open", s.wait("error") is not None and s.alive(), "error", s.tail())
    try:
        for _ in range(25):
            s.text("{nonsense")
            s.send("no_such_command", {})
    except OSError:
        pass
    check("…after 20 in a minute close 4400", s.wait_close() == 4400, 4400, (s.close_code, s.close_reason))
    # heads
    answer = http(w.a.port, "GET", "/api/v1/conversations", ada, headers={"X-Long": "x" * 40000})
    check("headers too large → 431", answer.status == 431, 431, answer)
    answer = handshake(w.a.port, ada, "v", headers={"Sec-WebSocket-Version": "12"})
    check("another WebSocket version → 426 or 400", isinstance(answer, Answer) and answer.status in (400, 426), "426", answer)


def half_open(w):
    """A handshake that is never finished."""
    with socket.create_connection(("127.0.0.1", w.b.port)) as sock:
        sock.sendall(b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgr")
        begin = time.monotonic()
        sock.settimeout(14)
        try:
            while sock.recv(4096):
                pass
            took = time.monotonic() - begin
        except TimeoutError:
            took = None
        except OSError:
            took = time.monotonic() - begin
    check("a handshake not finished in 10 s is closed", took is not None and 8 <= took <= 13, "about 10 s", took)


def slow_consumer(w):
    def noted():
        text = http(w.b.admin, "GET", "/metrics").body.decode()
        return sum(float(v) for v in re.findall(r"^tidings_slow_consumers_total (\S+)$", text, re.M))

    for mode in ("classic", "full"):
        ada, bob = uid(), uid()
        g = group(w.a, ada, bob)
        b = WS(w.b.port, bob, "slow", full=mode == "full", small=True)
        b.wait("hello")
        b.reading.clear()
        a, before, i = WS(w.a.port, ada, "a"), noted(), 0
        # Until the node notes that the queue is full; 480 are within the burst of the rate.
        while i < 480 and noted() == before:
            for _ in range(20):
                i += 1
                a.send("send_message", {"conversation_id": g, "content": "x" * 15000, "message_type": "text"}, f"s{i}")
            until(lambda: len([1 for x in list(a.events) if x.get("ref", "").startswith("s")]) == i)
        answered = [x["type"] for x in list(a.events) if x.get("ref", "").startswith("s")]
        check(f"large sends are answered while a {mode} recipient does not read", answered == ["ok"] * i, f"{i} ok", a.tail()[-300:])
        b.reading.set()
        if mode == "classic":
            code = b.wait_close(15)
            check("a classic client too slow is closed with 4001", code == 4001, 4001, (code, b.close_reason, b.count("new_message"), f"{i} sent"))
        else:
            p = b.wait("resync", timeout=15)
            check("a full client too slow is told resync {conversations?}", p is not None and (p.get("conversations") is None or g in p["conversations"]),
                  "resync", p if p is not None else (b.close_code, b.count("new_message"), f"{i} sent"))
            check("…and stays open", b.alive(), "alive", b.close_code)


def small(w):
    """The gateway mode, and limits that were set low."""
    n = w.small
    ada, bob = uid(), uid()

    def far(address):
        return {"X-Forwarded-For": address}

    answer = http(n.port, "POST", "/api/v1/conversations", ada, {"kind": "group", "title": "G", "participants": [bob, uid(), uid()]})
    check("gateway mode: X-User-ID of a trusted proxy is believed", answer.status == 201, "201", answer)
    g = answer["id"]
    refused("a group above MAX_GROUP_SIZE", http(n.port, "POST", "/api/v1/conversations", ada, {"kind": "group", "participants": [uid() for _ in range(4)]}), (400, 422))
    refused("…also by adding", http(n.port, "POST", f"/api/v1/conversations/{g}/participants", ada, {"user_ids": [uid()]}), (400, 409, 422))
    answers = [post(n, ada, g) for _ in range(14)]
    late = [x for x in answers if x.status != 201]
    if check("too many sends → 429", late and late[0].status == 429 and 8 <= len(answers) - len(late) <= 13, "429 after a burst of about 10", [x.status for x in answers]):
        refused("…problem+json", late[0], 429)
        check("…with Retry-After and retry_ms", "retry-after" in late[0].headers and late[0]["retry_ms"], "Retry-After", (late[0].headers, late[0]))
    answers = [http(n.port, "POST", "/api/v1/sync", ada, {"conversations": {}}) for _ in range(8)]
    late = [x for x in answers if x.status == 429]
    check("too many syncs → 429 with Retry-After", late and "retry-after" in late[0].headers, "429", [x.status for x in answers])
    s = WS(n.port, ada, "a")
    s.wait("hello")
    kind, p = s.ask("send_message", {"conversation_id": g, "content": "x", "message_type": "text"})
    if kind == "ok":
        for _ in range(5):
            kind, p = s.ask("send_message", {"conversation_id": g, "content": "x", "message_type": "text"})
    check("socket: too many sends → error 429 with retry_ms", kind == "error" and is_problem(p, (429,)) and p.get("retry_ms"), "problem 429", (kind, p))
    for _ in range(13):
        kind, p = s.ask("typing", {"conversation_id": g, "is_typing": True})
    check("socket: too much typing → error 429 with retry_ms", kind == "error" and is_problem(p, (429,)) and p.get("retry_ms"), "problem 429", (kind, p))
    try:
        for i in range(1300):
            s.send("typing", {"conversation_id": g, "is_typing": True}, f"t{i}")
    except OSError:
        pass
    check("who hammers is closed with 4029", s.wait_close() == 4029, 4029, (s.close_code, s.close_reason))
    # heartbeat: silence, and no pong
    s, alive = WS(n.port, ada, "dead", pong=False), WS(n.port, bob, "alive")
    begin = time.monotonic()
    code = s.wait_close(6)
    check("no pong → close 4000", code == 4000, 4000, (code, s.close_reason, time.monotonic() - begin))
    check("…who answers pings stays", alive.alive(), "alive", alive.tail())
    alive.leave()
    # connections, by address and in all
    held = [handshake(n.port, uid(), "d", headers=far("203.0.113.1")) for _ in range(4)]
    check("MAX_CONNECTIONS_PER_IP: the fourth from an address is refused", all(isinstance(x, WS) for x in held[:3]) and isinstance(held[3], Answer) and held[3].status in (429, 503), "429/503", held)
    held += [handshake(n.port, uid(), "d") for _ in range(6)]
    over = held[-1]
    check("MAX_CONNECTIONS: 503 with Retry-After", isinstance(over, Answer) and over.status == 503 and "retry-after" in over.headers, "503", (over, getattr(over, "headers", None)))
    for x in held:
        if isinstance(x, WS):
            x.leave()
    answers = [handshake(n.port, uid(), "d", headers=far("203.0.113.9")) for _ in range(14)]
    for x in answers:
        if isinstance(x, WS):
            x.leave()
    codes = [x.status for x in answers if isinstance(x, Answer)]
    over = [x for x in answers if isinstance(x, Answer) and x.status == 429 and "retry-after" in x.headers]
    check("too many handshakes from an address → 429 with Retry-After", over, "429", codes)
    # the drain is announced before it begins
    s = until(lambda: (lambda x: x if isinstance(x, WS) else None)(handshake(n.port, uid(), "d")))
    s.wait("hello")
    n.process.send_signal(signal.SIGTERM)
    seen = until(lambda: http(n.port, "GET", "/ready").status == 503 or s.close_code, 3)
    check("SIGTERM: /ready is 503 during DRAIN_GRACE, sockets are open", seen and s.close_code is None, "503", s.close_code)
    check("…and /health stays 200", http(n.port, "GET", "/health").status == 200, "200", "")
    check("…then 1012", s.wait_close() == 1012, 1012, s.close_code)
    try:
        code = n.process.wait(8)
    except subprocess.TimeoutExpired:
        code = "runs"
    check("…and exit code 0", code == 0, 0, code)


def token(user, seconds=60, key=JWT_KEY, alg="HS256", **claims):
    def part(data):
        return base64.urlsafe_b64encode(data if isinstance(data, bytes) else json.dumps(data).encode()).rstrip(b"=").decode()
    body = {"sub": user, "exp": int(time.time()) + seconds, **claims}
    body = {k: v for k, v in body.items() if v is not None}
    head = part({"alg": alg, "typ": "JWT"}) + "." + part(body)
    return head + "." + ("" if alg == "none" else part(hmac.new(key.encode(), head.encode(), hashlib.sha256).digest()))


def jwt(w):
    ada, bob = uid(), uid()

    def bearer(t):
        return {"Authorization": "Bearer " + t}

    # sockets whose token ends soon: looked at in the end
    ending = WS(w.ja.port, headers=bearer(token(ada, 3)), device="ends")
    renewed = WS(w.ja.port, headers=bearer(token(ada, 3)), device="renewed")
    ending.wait("hello"), renewed.wait("hello")
    later = int(time.time()) + 120
    kind, p = renewed.ask("refresh_token", {"token": token(bob, 120)})
    check("refresh_token of another user is refused", kind == "error", "error", (kind, p))
    time.sleep(1.1)  # one refresh a second
    kind, p = renewed.ask("refresh_token", {"token": token(ada, 120)})
    check("refresh_token → ok {expires_at}", kind == "ok" and p.get("expires_at") is not None, "ok", (kind, p))
    if kind == "ok":
        check("…a time of RFC 3339", is_time(p["expires_at"]), "times are RFC 3339 with milliseconds", p)
    answer = http(w.ja.port, "POST", "/api/v1/conversations", body={"kind": "direct", "participants": [bob]}, headers=bearer(token(ada)))
    check("jwt: Authorization: Bearer", answer.status == 201 and answer["created_by"] == ada, "201", answer)
    c = answer["id"]
    refused("jwt: X-User-ID counts for nothing", http(w.ja.port, "GET", "/api/v1/conversations", ada), 401)
    answer = http(w.ja.port, "GET", f"/api/v1/conversations/{c}", uid(), headers=bearer(token(ada)))
    check("jwt: …also next to a token", answer.status == 200, "200 as ada", answer)
    for name, bad in (("an expired token", token(ada, -60)), ("another key", token(ada, key="x" * 40)), ("alg none", token(ada, alg="none")),
                      ("a sub that is no UUID", token("ada")), ("no exp", token(ada, exp=None)), ("nbf in the future", token(ada, nbf=int(time.time()) + 60)), ("nonsense", "x.y.z")):
        refused(f"jwt: {name}", http(w.ja.port, "GET", "/api/v1/conversations", headers=bearer(bad)), 401)
    answer = handshake(w.jb.port, headers=bearer(token(ada, -60)), device="x")
    check("jwt: a socket with an expired token is refused", (isinstance(answer, Answer) and answer.status == 401) or (isinstance(answer, WS) and answer.wait_close() == 4401), "401 (or 4401)", answer)
    answer = handshake(w.jb.port, bob, "x")
    check("jwt: a socket with X-User-ID only is refused", isinstance(answer, Answer) and answer.status == 401, "401", answer)
    s = handshake(w.jb.port, protocols=[FULL, "bearer." + token(bob)], query={"device_id": "page", "platform": "web"})
    p = s.wait("hello") if isinstance(s, WS) else None
    check("jwt: subprotocol entries tidings.v1.json, bearer.<token>", p and p["user_id"] == bob, "hello of bob", p or s)
    check("jwt: only tidings.v1.json is echoed", isinstance(s, WS) and s.headers.get("sec-websocket-protocol") == FULL, FULL, getattr(s, "headers", None))
    m = http(w.ja.port, "POST", "/api/v1/messages", body={"conversation_id": c, "content": "x", "message_type": "text"}, headers=bearer(token(ada))).json
    check("jwt: a message from ada to bob on the other node", s.wait("new_message", of(m)), "new_message", s.tail())
    t = http(w.ja.port, "POST", "/api/v1/ws-tickets", headers=bearer(token(bob)))
    s = handshake(w.jb.port, query={"ticket": t["ticket"] or "", "device_id": "t"})
    p = s.wait("hello") if isinstance(s, WS) else None
    check("jwt: ?ticket= on the other node", p and p["user_id"] == bob, "hello of bob", p or s)
    s = handshake(w.jb.port, query={"user_id": bob})
    check("jwt: ?user_id= counts for nothing", isinstance(s, Answer) and s.status == 401, "401", s)
    check("jwt: a socket closes with 4401 when its token ends", ending.wait_close(12) == 4401, 4401, (ending.close_code, ending.close_reason))
    check("jwt: …not if the token was renewed", renewed.alive(), "alive", renewed.tail())


def drain(w):
    ada, bob, eve = uid(), uid(), uid()
    g = group(w.a, ada, bob, eve)
    f, c = WS(w.a.port, bob, "full"), WS(w.a.port, eve, "classic", full=False)
    epoch = f.wait("hello")["store_epoch"]
    c.wait("hello")
    m = sent(w.b, ada, g, "before")
    f.wait("new_message", of(m)), c.wait("new_message", of(m))
    begin = time.monotonic()
    w.a.process.send_signal(signal.SIGTERM)
    p = f.wait("reconnect")
    check("SIGTERM: reconnect {after_ms}", p is not None and isinstance(p.get("after_ms"), (int, float)), "reconnect", p if p is not None else f.tail())
    check("…close 1012", f.wait_close() == 1012, 1012, (f.close_code, f.close_reason))
    check("…also for classic clients", c.wait_close() == 1012, 1012, (c.close_code, c.close_reason))
    check("…who get no reconnect", "reconnect" not in c.kinds(), "classic gets no events beyond those named", c.kinds())
    try:
        code = w.a.process.wait(8)
    except subprocess.TimeoutExpired:
        code = "runs"
    check("…exit code 0 within a few seconds", code == 0, 0, (code, time.monotonic() - begin))
    if not w.cluster:
        w.a.start()
        w.a.ready()
    meanwhile = sent(w.b, ada, g, "meanwhile")
    f = WS(w.b.port, bob, "full")
    p = f.wait("hello")
    check("come back " + ("on the other node" if w.cluster else "after the restart") + ", the same store_epoch", p and p["store_epoch"] == epoch, epoch, p)
    kind, p = f.ask("sync", {"conversations": {g: m["seq"]}, "store_epoch": epoch})
    row = next((x for x in p["conversations"] if x["id"] == g), {}) if kind == "ok" else {}
    check("sync brings exactly what was missed", [x["id"] for x in row.get("messages", [])] == [meanwhile["id"]], [meanwhile["id"]], (kind, p))
    answer = http(w.b.port, "GET", f"/api/v1/messages/{m['id']}", ada)
    check("what was acknowledged is there", answer.status == 200, "200", answer)


def run(section, w):
    local.section = section.__name__
    begin = time.monotonic()
    try:
        section(w)
    except Exception:
        check("the section runs to its end", False, "no surprise", traceback.format_exc()[-900:])
    return section.__name__, time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--only", help="names of sections, separated by commas")
    parser.add_argument("--keep", action="store_true", help="leave the nodes' logs and data")
    arguments = parser.parse_args()
    begin = time.monotonic()
    directory = tempfile.mkdtemp(prefix="tidings-blackbox-")
    world = World.__new__(World)
    world.database = None

    def late():
        with print_lock:
            print(f"FAIL    the run did not end within {TOTAL:.0f} s", flush=True)
        world.stop()
        os._exit(1)

    timer = threading.Timer(TOTAL, late)
    timer.daemon = True
    timer.start()
    try:
        world.__init__(os.path.abspath(arguments.binary), arguments.cluster, directory)
        print(f"nodes are up after {time.monotonic() - begin:.1f} s", flush=True)
        sections = [offline, half_open, jwt, small, sync, conversations, messages, classic, full, presence, sessions, limits, history, operations, slow_consumer]
        if arguments.only:
            sections = [s for s in sections if s.__name__ in arguments.only.split(",")]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            took = list(pool.map(lambda s: run(s, world), sections))
        if not arguments.only or "drain" in arguments.only:
            took.append(run(drain, world))
        print("seconds: " + ", ".join(f"{n} {t:.1f}" for n, t in took))
    finally:
        timer.cancel()
        world.stop()
        if arguments.keep:
            print(f"logs and data: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    print(f"{counts['ok']} ok, {counts['FAIL']} failed, {counts['pending']} pending, {time.monotonic() - begin:.1f} s"
          f" ({'two nodes' if arguments.cluster else 'one node'})")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
