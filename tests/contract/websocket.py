#!/usr/bin/env python3
"""The WebSocket protocol (RFC 6455), tested from outside: bare sockets, no code of the server's.

    websocket.py http://127.0.0.1:8083 [CASE...]

The groups follow those of the Autobahn test suite. A command `ping` with a `ref` serves as the echo: the node
answers it with the event `pong` and an `ok` that carries the same `ref`. Each case has a socket of its own.
"""

import base64
import hashlib
import json
import os
import socket
import struct
import sys
import time
import uuid
from urllib.parse import urlparse

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10
PATIENCE = 10
# The defaults of the node.
MAX_FRAME = 64 * 1024
MAX_REF = 128


class Failed(Exception):
    pass


def expect(condition, what):
    if not condition:
        raise Failed(what)


class Socket:
    def __init__(self, address):
        self.stream = socket.create_connection(address, timeout=PATIENCE)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(
            (
                f"GET /ws HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nConnection: Upgrade\r\n"
                f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: other, tidings.v1.json\r\n"
                f"X-User-ID: {uuid.uuid4()}\r\n\r\n"
            ).encode()
        )
        while b"\r\n\r\n" not in self.received:
            self.read()
        head, self.received = self.received.split(b"\r\n\r\n", 1)
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        accept = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        expect(status.startswith("HTTP/1.1 101 "), status)
        expect(headers.get("sec-websocket-accept") == base64.b64encode(accept).decode(), "the accept key")
        expect(headers.get("sec-websocket-protocol") == "tidings.v1.json", "the subprotocol is chosen")
        expect("sec-websocket-extensions" not in headers, "no extension is agreed to")
        expect(self.event()["type"] == "hello", "hello comes first")

    def read(self):
        data = self.stream.recv(65536)
        if not data:
            raise EOFError
        self.received += data

    def take(self, size):
        while len(self.received) < size:
            self.read()
        taken, self.received = self.received[:size], self.received[size:]
        return taken

    def send(self, data, chop=None):
        try:
            for at in range(0, len(data), chop or len(data) or 1):
                self.stream.sendall(data[at : at + (chop or len(data))])
        except (BrokenPipeError, ConnectionResetError):
            pass  # What the server said before it closed is read by the case.

    def frame(self):
        """The next frame: opcode and payload. Frames of a server are whole, unmasked and without reserved bits."""
        first, second = self.take(2)
        expect(first & 0x70 == 0, "reserved bits from the server")
        expect(second & 0x80 == 0, "the server masks")
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self.take(2))
            expect(size > 125, "the shortest form of a length")
        elif size == 127:
            (size,) = struct.unpack("!Q", self.take(8))
            expect(size > 65535, "the shortest form of a length")
        opcode = first & 0xF
        expect(opcode < 8 or (first & FIN and size <= 125), "control frames are whole and short")
        expect(first & FIN, "the server does not fragment")
        return opcode, self.take(size)

    def event(self):
        opcode, payload = self.frame()
        expect(opcode == TEXT, f"an event and not opcode {opcode}: {payload!r}")
        return json.loads(payload.decode("utf-8", "strict"))

    def echoed(self, text):
        expect(self.event()["type"] == "pong", "pong")
        expect(self.event() == {"type": "ok", "ref": text, "payload": {}}, "the same ref")

    def closed(self, *codes):
        """A close frame with one of these codes comes, nothing after it, and the connection ends."""
        while True:
            try:
                opcode, payload = self.frame()
            except (EOFError, ConnectionResetError):
                raise Failed("the connection ended without a close frame") from None
            if opcode == CLOSE:
                break
        (code,) = struct.unpack("!H", payload[:2])
        expect(code in codes, f"closed with {code}, and not {codes}")
        expect("reason" in json.loads(payload[2:].decode("utf-8", "strict")), "the reason is JSON")
        try:
            expect(not self.received and not self.stream.recv(1), "nothing follows the close")
        except ConnectionResetError:
            pass

    def alive(self):
        self.send(frame(FIN | TEXT, command("alive")))
        self.echoed("alive")


def frame(first, payload=b"", mask=True, length=None):
    """A frame's bytes; `length` announces another length than the payload has."""
    size = len(payload) if length is None else length
    bit = 0x80 if mask else 0
    head = bytes([first])
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    if not mask:
        return head + payload
    key = os.urandom(4)
    pad = (key * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return head + key + masked.to_bytes(len(payload), "big")


def command(text, size=None):
    """A ping with this `ref`, filled up with white space to `size` bytes."""
    text = text if isinstance(text, bytes) else json.dumps(text, ensure_ascii=False).encode()[1:-1]
    data = b'{"type":"ping","ref":"' + text + b'"}'
    return data + b" " * ((size or 0) - len(data))


def fragments(first, data, size):
    """The message in pieces of this size; also an empty one is a piece."""
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    frames = []
    for at, part in enumerate(parts):
        fin = FIN if at + 1 == len(parts) else 0
        frames.append(frame(fin | (first if at == 0 else CONTINUATION), part))
    return frames


CASES = {}


def case(name):
    def add(function):
        expect(name not in CASES, f"case {name} is there twice")
        CASES[name] = function
        return function

    return add


# 1: framing.

for kind, opcode in (("1", TEXT), ("2", BINARY)):
    for at, size in enumerate((0, 125, 126, 127, 128, 65535, MAX_FRAME), 1):
        for chop in (None, 997):

            @case(f"1.{kind}.{at}" + (".chopped" if chop else ""))
            def _(s, opcode=opcode, size=size, chop=chop):
                if size == 0:
                    s.send(frame(FIN | opcode), chop)
                    expect(s.event()["payload"]["code"] == "malformed", "an empty message is no command")
                else:
                    s.send(frame(FIN | opcode, command("*", size)), chop)
                    s.echoed("*")
                s.alive()


# 2: pings and pongs.

for at, payload in enumerate((b"", b"Hello", bytes([0, 255, 254, 253, 252, 251, 0, 255]), b"\xfe" * 125), 1):
    for chop in (None, 1):

        @case(f"2.{at}" + (".chopped" if chop else ""))
        def _(s, payload=payload, chop=chop):
            s.send(frame(FIN | PING, payload), chop)
            expect(s.frame() == (PONG, payload), "a pong with the same payload")
            s.alive()


@case("2.5")
def _(s):
    s.send(frame(FIN | PING, b"\xfe" * 126))
    s.closed(1002)


@case("2.7")
def _(s):
    s.send(frame(FIN | PONG) + frame(FIN | PONG, b"unasked"))
    s.alive()


@case("2.9")
def _(s):
    s.send(frame(FIN | PONG, b"unasked") + frame(FIN | PING, b"payload"))
    expect(s.frame() == (PONG, b"payload"), "a pong for the ping alone")


@case("2.10")
def _(s):
    s.send(b"".join(frame(FIN | PING, b"payload-%d" % at) for at in range(10)))
    for at in range(10):
        expect(s.frame() == (PONG, b"payload-%d" % at), "a pong for each, in their order")


@case("2.11")
def _(s):
    s.send(b"".join(frame(FIN | PING, b"payload-%d" % at) for at in range(10)), 1)
    for at in range(10):
        expect(s.frame() == (PONG, b"payload-%d" % at), "a pong for each, in their order")


# 3: reserved bits.

for bits in range(1, 8):
    for opcode in (TEXT, BINARY, PING, PONG, CLOSE):

        @case(f"3.{bits}.{opcode}")
        def _(s, bits=bits, opcode=opcode):
            s.send(frame(FIN | TEXT, command("before")))
            s.echoed("before")
            s.send(frame(FIN | bits << 4 | opcode, b""))
            s.closed(1002)


# 4: opcodes.

for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
    for payload in (b"", b"reserved"):

        @case(f"4.{1 if opcode < 8 else 2}.{opcode}" + (".payload" if payload else ""))
        def _(s, opcode=opcode, payload=payload):
            s.send(frame(FIN | TEXT, command("before")) + frame(FIN | opcode, payload) + frame(FIN | PING))
            s.echoed("before")
            s.closed(1002)


# 5: fragmentation.

for at, opcode in enumerate((PING, PONG, CLOSE), 1):

    @case(f"5.{at}")
    def _(s, opcode=opcode):
        s.send(frame(opcode, b"frag") + frame(FIN | CONTINUATION, b"ment"))
        s.closed(1002)


for size in (1, 2, 7, 13):
    for chop in (None, 1):
        for kind, opcode in (("text", TEXT), ("binary", BINARY)):

            @case(f"5.4.{kind}.{size}" + (".chopped" if chop else ""))
            def _(s, size=size, chop=chop, opcode=opcode):
                s.send(b"".join(fragments(opcode, command("fragmented"), size)), chop)
                s.echoed("fragmented")


for chop in (None, 1):

    @case("5.6" + (".chopped" if chop else ""))
    def _(s, chop=chop):
        first, second = fragments(TEXT, command("around"), 20)
        s.send(first + frame(FIN | PING, b"between") + second, chop)
        expect(s.frame() == (PONG, b"between"), "the ping is answered first")
        s.echoed("around")


for at, (fin, payload) in enumerate(((FIN, b"nothing"), (FIN, b""), (0, b"nothing"), (0, b"")), 9):

    @case(f"5.{at}")
    def _(s, fin=fin, payload=payload):
        s.send(frame(fin | CONTINUATION, payload) + frame(FIN | TEXT, command("after")))
        s.closed(1002)


@case("5.15")
def _(s):
    s.send(b"".join(fragments(TEXT, command("whole"), 9)) + frame(CONTINUATION, b"more") + frame(FIN | TEXT, b"x"))
    s.echoed("whole")
    s.closed(1002)


for at, opcode in enumerate((TEXT, BINARY), 16):

    @case(f"5.{at}")
    def _(s, opcode=opcode):
        s.send(frame(opcode, b'{"type"') + frame(FIN | opcode, b':"ping"}'))
        s.closed(1002)


@case("5.19")
def _(s):
    parts = fragments(TEXT, command("slow"), 6)
    for at, part in enumerate(parts):
        s.send(part)
        if at in (1, 3):
            time.sleep(0.3)
            s.send(frame(FIN | PING, b"%d" % at))
            expect(s.frame() == (PONG, b"%d" % at), "a pong between fragments")
    s.echoed("slow")


@case("5.20")
def _(s):
    s.send(frame(TEXT) + frame(CONTINUATION) * 20 + frame(CONTINUATION, command("empty")) + frame(FIN | CONTINUATION))
    s.echoed("empty")


# 6: UTF-8.

VALID = {
    "hello": "Hello-µ@ßöäüàá-UTF-8!!",
    "kosme": "κόσμε",
    "first": "".join(map(chr, (0x80, 0x800, 0x10000))),
    "last": "".join(map(chr, (0x7F, 0x7FF, 0xFFFF, 0x10FFFF))),
    "borders": "".join(map(chr, (0xD7FF, 0xE000, 0xFFFD, 0x10FFFF))),
    "noncharacters": "".join(map(chr, (0xFFFE, 0xFFFF, 0x1FFFE, 0x2FFFF, 0xFDD0))),
    "astral": "😀𝄞𐍈",
}
for name, text in VALID.items():
    data = command(text)

    @case(f"6.valid.{name}")
    def _(s, text=text, data=data):
        for opcode in (TEXT, BINARY):
            s.send(frame(FIN | opcode, data))
            s.echoed(text)

    @case(f"6.valid.{name}.fragmented")
    def _(s, text=text, data=data):
        for size in (1, 2, 3, 5):
            s.send(b"".join(fragments(TEXT, data, size)))
            s.echoed(text)

    @case(f"6.valid.{name}.chopped")
    def _(s, text=text, data=data):
        s.send(frame(FIN | TEXT, data), 1)
        s.echoed(text)


INVALID = {
    "continuation": b"\x80",
    "continuations": b"\x80\xbf\x80\xbf",
    "all-continuations": bytes(range(0x80, 0xC0)),
    "lonely-2": b"\xc2 ",
    "lonely-3": b"\xe0 ",
    "lonely-4": b"\xf0 ",
    "cut-2": b"\xce",
    "cut-3": b"\xe1\x80",
    "cut-4": b"\xf1\x80\x80",
    "start-5": b"\xf8\x88\x80\x80\x80",
    "start-6": b"\xfc\x84\x80\x80\x80\x80",
    "fe": b"\xfe",
    "ff": b"\xff",
    "overlong-slash-2": b"\xc0\xaf",
    "overlong-slash-3": b"\xe0\x80\xaf",
    "overlong-slash-4": b"\xf0\x80\x80\xaf",
    "overlong-2": b"\xc1\xbf",
    "overlong-3": b"\xe0\x9f\xbf",
    "overlong-4": b"\xf0\x8f\xbf\xbf",
    "overlong-nul": b"\xc0\x80",
    "surrogate-high": b"\xed\xa0\x80",
    "surrogate-high-last": b"\xed\xaf\xbf",
    "surrogate-low": b"\xed\xb0\x80",
    "surrogate-low-last": b"\xed\xbf\xbf",
    "surrogate-pair": b"\xed\xa0\x80\xed\xb0\x80",
    "above": b"\xf4\x90\x80\x80",
    "latin-1": "café".encode("latin-1"),
    "utf-16": "😀".encode("utf-16-le"),
    "in-between": "κόσμε".encode() + b"\xed\xa0\x80" + b"edited",
}
for name, raw in INVALID.items():
    data = command(raw)

    @case(f"6.invalid.{name}")
    def _(s, data=data):
        s.send(frame(FIN | TEXT, data))
        s.closed(1007)

    @case(f"6.invalid.{name}.fragmented")
    def _(s, data=data):
        s.send(b"".join(fragments(TEXT, data, 1)))
        s.closed(1007)

    @case(f"6.invalid.{name}.chopped")
    def _(s, data=data):
        s.send(frame(FIN | TEXT, data), 1)
        s.closed(1007)


# 7: closing.


@case("7.1.1")
def _(s):
    s.send(frame(FIN | TEXT, command("last")) + frame(FIN | CLOSE, b"\x03\xe8"))
    s.echoed("last")
    s.closed(1000)


@case("7.1.2")
def _(s):
    s.send(frame(FIN | CLOSE, b"\x03\xe8") * 2)
    s.closed(1000)


@case("7.1.3")
def _(s):
    s.send(frame(FIN | CLOSE, b"\x03\xe8") + frame(FIN | PING, b"late"))
    s.closed(1000)


@case("7.1.4")
def _(s):
    s.send(frame(FIN | CLOSE, b"\x03\xe8") + frame(FIN | TEXT, command("late")))
    s.closed(1000)


@case("7.1.5")
def _(s):
    s.send(frame(TEXT, b"{") + frame(FIN | CLOSE, b"\x03\xe8") + frame(FIN | CONTINUATION, b"}"))
    s.closed(1000)


@case("7.1.6")
def _(s):
    s.send(frame(FIN | TEXT, command("large", MAX_FRAME)) + frame(FIN | CLOSE, b"\x03\xe8") + frame(FIN | PING))
    s.echoed("large")
    s.closed(1000)


for at, (payload, code) in enumerate(
    (
        (b"", 1000),
        (b"a", 1002),
        (b"\x03\xe8", 1000),
        (b"\x03\xe8Hello World!", 1000),
        (b"\x03\xe8" + b"*" * 123, 1000),
        (b"\x03\xe8" + b"*" * 124, 1002),
    ),
    1,
):

    @case(f"7.3.{at}")
    def _(s, payload=payload, code=code):
        s.send(frame(FIN | CLOSE, payload))
        s.closed(code)


for name, raw in INVALID.items():

    @case(f"7.5.{name}")
    def _(s, raw=raw):
        s.send(frame(FIN | CLOSE, b"\x03\xe8" + raw))
        s.closed(1007)


for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999):

    @case(f"7.7.{code}")
    def _(s, code=code):
        s.send(frame(FIN | CLOSE, struct.pack("!H", code) + b"bye"))
        s.closed(1000)


for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):

    @case(f"7.9.{code}")
    def _(s, code=code):
        s.send(frame(FIN | CLOSE, struct.pack("!H", code) + b"bye"))
        s.closed(1002)


# 9: limits.

for at, size in enumerate((4 << 10, 16 << 10, MAX_FRAME), 1):
    for piece in (64, 256, 1 << 10, size):

        @case(f"9.1.{at}.{piece}")
        def _(s, size=size, piece=piece):
            s.send(b"".join(fragments(TEXT, command("large", size), piece)))
            s.echoed("large")

    for chop in (64, 128, 1024):

        @case(f"9.2.{at}.{chop}")
        def _(s, size=size, chop=chop):
            s.send(frame(FIN | TEXT, command("large", size)), chop)
            s.echoed("large")


for name, size in (("one", MAX_FRAME + 1), ("fragments", 1 << 10)):

    @case(f"9.3.{name}")
    def _(s, size=size):
        s.send(b"".join(fragments(TEXT, command("too large", MAX_FRAME + 1), size)))
        error = s.event()
        expect(error["type"] == "error" and error["payload"]["code"] == "too_large", f"refused: {error}")
        s.alive()


@case("9.4")
def _(s):
    s.send(frame(FIN | TEXT, b"", length=16 << 20))
    s.closed(1009)


@case("9.5")
def _(s):
    s.send(frame(TEXT, b"{") + frame(CONTINUATION, b" " * MAX_FRAME) * 6)
    s.closed(1009)


@case("9.6")
def _(s):
    s.send(frame(FIN | TEXT, b"", length=(1 << 63) - 1))
    s.closed(1009, 1002)


@case("9.7")
def _(s):
    s.send(frame(FIN | TEXT, command("*")) * 1000)
    for _ in range(1000):
        s.echoed("*")


@case("9.8")
def _(s):
    s.send(frame(FIN | TEXT, command("x" * MAX_REF)) + frame(FIN | TEXT, command("x" * (MAX_REF + 1))))
    s.echoed("x" * MAX_REF)
    expect(s.event()["payload"]["field"] == "ref", "a longer ref is refused")


# 10: what clients must do and do not.


@case("10.1")
def _(s):
    s.send(b"".join(fragments(TEXT, command("*", 65536), 1300)))
    s.echoed("*")


for opcode in (TEXT, BINARY, PING, PONG, CLOSE):

    @case(f"10.unmasked.{opcode}")
    def _(s, opcode=opcode):
        s.send(frame(FIN | opcode, command("*") if opcode < 8 else b"", mask=False))
        s.closed(1002)


def main():
    url = urlparse(sys.argv[1])
    wanted = sys.argv[2:]
    started, failed, count = time.monotonic(), [], 0
    for name, run in CASES.items():
        if wanted and not any(name.startswith(prefix) for prefix in wanted):
            continue
        count += 1
        try:
            s = Socket((url.hostname, url.port))
            try:
                run(s)
            finally:
                s.stream.close()
        except (Failed, EOFError, OSError, ValueError, KeyError) as error:
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"websocket: {count} cases, {len(failed)} failed, {time.monotonic() - started:.1f} s")
    sys.exit(1 if failed or not count else 0)


main()
