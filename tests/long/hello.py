# SPDX-License-Identifier: Apache-2.0
"""hello: ClientHellos in shapes that strain a peeking proxy: each takes the route of its name and arrives unchanged; and
clients that stop in mid-hello cost no CPU while they are waited for."""
import contextlib
import socket
import struct
import threading
import time

from daemon import Daemon
from stage import PATIENCE_S, Netns, Stage, wait_for

EDGE = ("127.0.0.1", 8443)
SERVERS = {"routed": ("127.0.0.1", 3001), "default": ("127.0.0.1", 3002)}
NAME, OTHER_NAME = "mta-sts.example.net", "www.example.net"
TABLES = """
[timeouts]
client_hello = "60s"
[upstream.routed]
servers = ["127.0.0.1:3001"]
[upstream.default]
servers = ["127.0.0.1:3002"]
[[listener]]
name = "web"
bind = ["127.0.0.1:8443"]
upstream = "default"
  [[listener.route]]
  sni = ["mta-sts.*"]
  upstream = "routed"
"""
IDLE_CPU_S = 0.05  # all of it, for all clients that wait
BYTEWISE_CPU_S = 0.01  # for one hello of 2,000 bytes in as many segments, splicing its echo included


def add_arguments(parser):
    parser.add_argument("--repeat", type=int, default=3, help="each shape so often")
    parser.add_argument("--clients", type=int, default=200, help="waiting in mid-hello")
    parser.add_argument("--seconds", type=float, default=5, help="how long they wait")


def client_hello(name, handshake_bytes=0, record_bytes=16384):
    """RFC 8446 4.1.2, server_name last, after padding (RFC 7685) to `handshake_bytes`; in records of `record_bytes`."""
    def sized(length_bytes, body):
        return len(body).to_bytes(length_bytes, "big") + body

    def extension(number, body):
        return struct.pack("!H", number) + sized(2, body)
    head = b"\3\3" + b"r" * 32 + sized(1, b"") + sized(2, b"\x13\1") + sized(1, b"\0")
    versions = extension(43, sized(1, b"\3\4"))
    server_name = extension(0, sized(2, b"\0" + sized(2, name.encode())))
    left = handshake_bytes - len(head) - 2 - len(versions) - len(server_name) - 4
    padding = extension(21, bytes(left)) if handshake_bytes else b""
    handshake = b"\1" + sized(3, head + sized(2, versions + padding + server_name))
    pieces = (handshake[at:at + record_bytes] for at in range(0, len(handshake), record_bytes))
    return b"".join(b"\x16\3\1" + sized(2, piece) for piece in pieces)


SHAPES = {  # (handshake_bytes, record_bytes, segment_bytes; 0: as TCP likes)
    "64 KiB, SNI last": (65536, 16384, 0),
    "600 bytes in 1-byte segments": (600, 16384, 1),
    "64 KiB in 1-byte segments": (65536, 16384, 1),
    "4,000 bytes over 100 records": (4000, 40, 0),
    "64 KiB over 1,000 records": (65536, 66, 0),
    "64 KiB over 1,000 records, in segments of 100": (65536, 66, 100),
}


def prove(options, report):
    with Stage(options.build) as stage, contextlib.ExitStack() as sockets:
        netns = Netns()
        with netns.inside():
            listeners = {name: sockets.enter_context(socket.create_server(a)) for name, a in SERVERS.items()}
        for name, listener in listeners.items():
            threading.Thread(target=echo_all, args=(listener, name.encode() + b"\n"), daemon=True).start()
        daemon = Daemon(stage, netns, TABLES)
        for shape, (handshake_bytes, record_bytes, segment_bytes) in SHAPES.items():
            reached, exact, began_s, began_cpu_s = [], True, time.monotonic(), daemon.cpu_s()
            for name in (NAME, OTHER_NAME) * options.repeat:
                hello = client_hello(name, handshake_bytes, record_bytes)
                who, same = ask(netns, hello, segment_bytes)
                reached.append(who)
                exact = exact and same
            right = reached == ["routed", "default"] * options.repeat
            report.claim(right and exact, shape, f"{len(reached)} hellos of {len(hello)} bytes with two names took "
                         f"{'the right route' if right else f'these routes: {reached}'}, "
                         f"{'unchanged' if exact else 'CHANGED'}; {time.monotonic() - began_s:.1f} s, CPU of penstockd "
                         f"{daemon.cpu_s() - began_cpu_s:.2f} s")
        wait_in_mid_hello(netns, daemon, options, report)
        all_at_once(netns, daemon, options, report)
        daemon.wait_active(0)
        daemon.stop()


def echo_all(listener, name):
    """A server that says who it is, then echoes."""
    def serve(peer):
        with peer, contextlib.suppress(OSError):
            peer.sendall(name)
            while data := peer.recv(65536):
                peer.sendall(data)
    while True:
        try:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
        except OSError:  # the proof is over
            return


def connect(netns):
    with netns.inside():
        client = socket.create_connection(EDGE, timeout=PATIENCE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def answer(client, hello):
    """(who answered, whether all of it came back)"""
    stream = client.makefile("rb")
    try:
        who = stream.readline().decode().strip()
        return who, stream.read(len(hello)) == hello
    except ConnectionResetError:
        return "nobody", False


def ask(netns, hello, segment_bytes):
    with connect(netns) as client:
        for at in range(0, len(hello), segment_bytes or len(hello)):
            client.sendall(hello[at:at + (segment_bytes or len(hello))])
        return answer(client, hello)


def wait_in_mid_hello(netns, daemon, options, report):
    """Each client stops somewhere else: in the record's header, in the handshake's, in the padding, before the name."""
    hello = client_hello(NAME, 4000, 1000)
    before = daemon.totals()["accepted"]
    with contextlib.ExitStack() as sockets:
        clients = []
        for number in range(options.clients):
            client = sockets.enter_context(connect(netns))
            cut = 1 + number * (len(hello) - 1) // options.clients
            client.sendall(hello[:cut])
            clients.append((client, cut))
        wait_for("the clients to be accepted", lambda: daemon.totals()["accepted"] == before + options.clients)
        began_cpu_s = daemon.cpu_s()
        time.sleep(options.seconds)
        used_s = daemon.cpu_s() - began_cpu_s
        report.claim(used_s <= IDLE_CPU_S, "waiting in mid-hello",
                     f"{options.clients} clients for {options.seconds:g} s: {used_s:.2f} s of CPU")
        answers = []
        for client, cut in clients:
            client.sendall(hello[cut:])
            answers.append(answer(client, hello))
    right = answers.count(("routed", True))
    report.claim(right == options.clients, "after the wait", f"{right} of {options.clients} took the right route, unchanged")


def all_at_once(netns, daemon, options, report):
    """Their segments lie too close for TCP to merge them, so that the receive buffers are full of segments of one byte."""
    hello = client_hello(NAME, 2000)
    with contextlib.ExitStack() as sockets:
        clients = [sockets.enter_context(connect(netns)) for _ in range(options.clients)]
        began_s, began_cpu_s = time.monotonic(), daemon.cpu_s()
        for at in range(len(hello)):
            for client in clients:
                client.sendall(hello[at:at + 1])
        answers = [answer(client, hello) for client in clients]
        used_s = daemon.cpu_s() - began_cpu_s
    right = answers.count(("routed", True))
    report.claim(right == options.clients and used_s <= BYTEWISE_CPU_S * options.clients, "a byte of each in turn",
                 f"{right} of {options.clients} hellos of {len(hello)} bytes took the right route, unchanged; "
                 f"{time.monotonic() - began_s:.1f} s, {used_s / options.clients * 1000:.1f} ms of CPU each")
