# SPDX-License-Identifier: Apache-2.0
"""bound: the most that one direction, and all together, can be made to hold in the kernel, measured by walking the targets'
queues (backlog.py), not by penstock's own account. Nobody reads; senders send what costs most: bytes one by one, 64 KiB
segments, small segments, but for 64 KiB once the target is full; the daemon runs, or is stopped (SIGSTOP) then. Against
flow.buffer and limits.memory, as the README promises. A relayed direction has its pipe instead, counted as full."""
import contextlib
import socket
import threading
import time

from backlog import Backlog
from daemon import Daemon, dump, piped, since
from report import counts, mib
from stage import Failed, Netns, Stage, wait_for

CLIENT, EDGE, EDGE_INSIDE, SERVER = "192.0.2.10", "192.0.2.1", "198.51.100.1", "198.51.100.80"
BUFFER_BYTES, PIPE_BYTES = 4 << 20, 1 << 20  # flow.buffer and flow.pipe, their defaults: the most of a pipe
MEMORY_BYTES = 64 << 20  # limits.memory where there are many
EVERY_S = 0.05
SENDERS = 4
FULL_LOOKS, FULL_BYTES = 10, 64 << 10  # so much waits, so often in a row: the target is full
CASES = {  # MTU (None: loopback, 64 KiB segments), bytes of a write
    "1-byte": (1280, 1), "64-KiB": (None, 256 << 10), "mtu-1280": (1280, 64 << 10), "mtu-576": (576, 64 << 10)}


def add_arguments(parser):
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--seconds", type=float, default=15, help="of sending, for each case")
    parser.add_argument("--flows", type=int, default=8, help="for the bound of one direction")
    parser.add_argument("--many", type=int, default=250, help="flows for the bound of all")


def prove(options, report):
    for name, (mtu, write_bytes) in CASES.items():
        if options.only not in (None, name):
            continue
        for stopped in (False, True):
            for flows, limits in ((options.flows, ""), (options.many, f'[limits]\nmemory = "{MEMORY_BYTES}B"')):
                with Stage(options.build) as stage, contextlib.ExitStack() as sockets:
                    label = f"{name}, {flows} flows, daemon {'stopped' if stopped else 'running'}"
                    case(stage, sockets, report, label, mtu, write_bytes, flows, limits, stopped, options.seconds)


def case(stage, sockets, report, label, mtu, write_bytes, flows, limits, stopped, seconds):
    peers, edge, server_at, listen_at = place(mtu)
    daemon = Daemon(stage, edge, piped(f"{server_at}:7001", f"{listen_at}:7100", extra=limits), max_flows=2 * flows)
    pairs = open_flows(sockets, peers, server_at, listen_at, flows)
    sources = [end for pair in pairs for end in pair]
    backlog = Backlog(stage, daemon)
    wait_for("the flows to open", lambda: [f["phase"] for f in daemon.flows()] == ["open"] * flows)
    if mtu:
        fill(daemon, backlog, pairs, bool(limits))
    totals = daemon.map_id("totals")
    before = daemon.status()
    over = threading.Event()
    with daemon.stopped() if stopped else contextlib.nullcontext():
        threads = [threading.Thread(target=send, args=(sources[n::SENDERS], write_bytes, over)) for n in range(SENDERS)]
        for thread in threads:
            thread.start()
        most = watch(backlog, totals, flows, seconds)
        over.set()
        for thread in threads:
            thread.join()
    seen = since(before["sockmap"], daemon.status()["sockmap"])
    tell = f"{most['samples']} walks of all; the kernel closed {seen.get('closes', 0)} valves and trimmed {seen.get('trims', 0)} segments meanwhile"
    report.claim(most["one"] <= BUFFER_BYTES, f"{label}: one direction",
                 f"{mib(most['one'])} waited at most, flow.buffer {mib(BUFFER_BYTES)}; {tell}")
    if limits:
        report.claim(most["all"] <= MEMORY_BYTES, f"{label}: all together",
                     f"{mib(most['all'])} at most, pipes of {mib(most['pipes'])} among them; limits.memory {mib(MEMORY_BYTES)}")
    else:
        report.figure(f"{label}: all together", f"{mib(most['all'])} at most, pipes of {mib(most['pipes'])} among them")
    backlog.close()
    sockets.close()
    daemon.wait_active(0, 60)
    closed = daemon.totals()["closed"]
    report.claim(not closed["account_mismatch"] and daemon.totals()["held_bytes"] == 0, f"{label}: accounts",
                 counts({reason: n for reason, n in closed.items() if n}))
    daemon.stop()


def place(mtu):
    """(peers, edge, the server's address, the listener's)"""
    peers = edge = Netns()
    if mtu is None:
        return peers, edge, "127.0.0.1", "127.0.0.1"
    edge = Netns()
    for device, address, edge_device, edge_address in (("clients", CLIENT, "outside", EDGE),
                                                       ("servers", SERVER, "inside", EDGE_INSIDE)):
        peers.join(device, address, edge, edge_device, edge_address, mtu)
        peers.offload(device, tso=False, gso=False)
        edge.offload(edge_device, gro=False)
    tune(peers, "initcwnd", 10_000)
    tune(edge, "quickack", 1)
    return peers, edge, SERVER, EDGE


def tune(namespace, *words):
    """Its routes. A sender of many segments at once, a receiver that acknowledges each: or single bytes would be joined."""
    for route in namespace.run("ip", "route", "show").splitlines():
        said = [word for word in route.split() if word not in ("linkdown", "dead")]  # how it is, not what it is to be
        namespace.run("ip", "route", "change", *said, *words)


def open_flows(sockets, peers, server_at, listen_at, flows):
    """(client, server) of each, which read nothing any more; the smallest receive buffers there are."""
    pairs = []
    with peers.inside(), socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        listener.bind((server_at, 7001))
        listener.listen(1024)
        for _ in range(flows):
            client = sockets.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect((listen_at, 7100))
            server = sockets.enter_context(listener.accept()[0])
            for source, target in ((client, server), (server, client)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                source.sendall(b"x")
                if target.recv(1) != b"x":
                    raise Failed("a new flow does not carry a byte")
            pairs.append((client, server))
    for pair in pairs:
        for end in pair:
            end.setblocking(False)
    return pairs


def fill(daemon, backlog, pairs, limited):
    """Until something waits for each target, and goes on waiting: what comes then is not taken, and its valve is open."""
    of_client = {pair[0].getsockname()[1]: pair for pair in pairs}
    target_of = {}  # the socket it writes to, by the source: see bpf/abi.h
    for _, flow in daemon.pinned("flows"):
        client, server = of_client[int(flow["client"].rpartition(":")[2])]
        target_of[client], target_of[server] = 2 * flow["slot"] + 1, 2 * flow["slot"]
    looks = dict.fromkeys(target_of, 0)

    def full():
        for source in list(looks):
            target = target_of[source]
            looks[source] = looks[source] + 1 if (backlog.held_bytes(target) or 0) >= FULL_BYTES else 0
            if not looks[source]:
                try:
                    source.send(bytes(4 << 10))
                except BlockingIOError:
                    pass
                except ConnectionResetError:
                    if not limited:
                        raise
                    del looks[source]  # to keep limits.memory
        time.sleep(0.01)
        return min(looks.values()) >= FULL_LOOKS
    wait_for("every target to be full", full, 180)


def send(sources, write_bytes, over):
    content = bytes(write_bytes)
    while not over.is_set():
        blocked = 0
        for source in sources:
            try:
                for _ in range(64):
                    source.send(content)
            except BlockingIOError:
                blocked += 1
            except OSError:  # reset: limits.memory
                blocked += 1
        if blocked == len(sources):
            over.wait(0.01)


def watch(backlog, totals, flows, seconds):
    """The most that was seen at one moment: of one direction, of all, in pipes; by capacity these."""
    most = {"one": 0, "all": 0, "pipes": 0, "samples": 0}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        each = [backlog.held_bytes(index) or 0 for index in range(4 * flows)]
        pipes = dump(totals)[0]["pipe_bytes"]
        most["one"] = max(most["one"], *each, PIPE_BYTES if pipes else 0)
        most["all"] = max(most["all"], sum(each) + pipes)
        most["pipes"] = max(most["pipes"], pipes)
        most["samples"] += 1
        time.sleep(EVERY_S)
    return most
