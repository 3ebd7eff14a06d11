# SPDX-License-Identifier: Apache-2.0
"""moves: connections one after the other while the configuration is reloaded and the server's name moves from address
to address, its TTL long, newcomers at the old one left without an answer or refused: none may be lost. Then reloads
alone, and what they cost in memory."""
import collections
import contextlib
import ctypes
import functools
import socket
import struct
import threading
import time

from daemon import Daemon
from machine import own_bytes
from names import Names
from report import mib
from stage import MS_BIND, Failed, Netns, Stage, mount, wait_for

NAME, NAME_SERVER, SERVER_PORT, EDGE = "server.example", "127.0.0.53", 3525, ("127.0.0.1", 2525)
TTL_S = 600
CONNECT_S = 2
CLIENT_S = 4 * CONNECT_S  # a client's patience
LOST_MAX = 100  # then there is no need to go on
ASKED_AGAIN_S = 1  # a name at most so often
WARM_RELOADS = 100
GROWTH_MAX = 1 << 20  # allocators keep some
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
TABLES = """
[timeouts]
connect = "{connect}s"
client_hello = "{client_hello}s"
[upstream.server]
servers = ["{name}:{port}"]
[[listener]]
name = "stays"
bind = ["{edge}"]
upstream = "server"
"""
MORE_PORT = 2526
MORE = f'[[listener]]\nname = "comes-and-goes"\nbind = ["127.0.0.1:{MORE_PORT}"]\nupstream = "server"\n'


def add_arguments(parser):
    parser.add_argument("--connections", type=int, default=20_000, help="at least")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--idle-reloads", type=int, default=1000)


class Server:
    """Says its address, then what it is sent, at whichever addresses it is."""

    def __init__(self, netns):
        self.netns = netns
        self.listeners = {}
        self.served = collections.Counter()

    def come(self, address):
        with self.netns.inside():
            listener = socket.create_server((address, SERVER_PORT), backlog=1024)
        self.listeners[address] = listener
        threading.Thread(target=self._accept, args=(address, listener), daemon=True).start()

    def leave(self, address, refuse):
        """Newcomers get no answer, or a refusal. Who is connected stays so, also who is not accepted yet."""
        listener = self.listeners.pop(address)
        ignore_syn(listener)
        if refuse:
            wait_for("the last to be accepted", lambda: not waiting(self.netns, address))
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, address, listener):
        with contextlib.suppress(OSError):
            while True:
                peer = listener.accept()[0]
                self.served[address] += 1
                threading.Thread(target=self._serve, args=(address, peer), daemon=True).start()

    @staticmethod
    def _serve(address, peer):
        with peer, contextlib.suppress(OSError):
            peer.sendall(address.encode() + b"\n")
            while data := peer.recv(4096):
                peer.sendall(data)


def ignore_syn(listener):
    """By a classic BPF filter, which sees a segment from its TCP header on: byte 13 has the flags (RFC 9293 3.1)."""
    load_byte, jump_if_set, give = 0x30, 0x45, 0x06  # linux/bpf_common.h: LD|ABS|B, JMP|JSET|K, RET|K
    program = [(load_byte, 0, 0, 13), (jump_if_set, 0, 1, 2), (give, 0, 0, 0), (give, 0, 0, 0xffffffff)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    held = ctypes.create_string_buffer(code)
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                        struct.pack("@HP", len(program), ctypes.addressof(held)))


def waiting(netns, address):
    """Connections there that are not yet accepted, or not yet established: Recv-Q of the listener, SYN-RECV."""
    ours = f"src {address}:{SERVER_PORT}"
    lines = netns.run("ss", "-Htn", "state", "listening", ours).splitlines()
    half_open = netns.run("ss", "-Htn", "state", "syn-recv", ours).splitlines()
    return sum(int(line.split()[0]) for line in lines) + len(half_open)


class Load:
    """Clients, each with one connection after the other: it hears whom it reached, its bytes come back, FINs follow."""

    def __init__(self, netns, clients):
        self.netns = netns
        self.lock, self.over = threading.Lock(), threading.Event()
        self.done, self.lost, self.slowest_s = 0, [], 0
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def wait(self, what, predicate):
        wait_for(what, lambda: predicate() or len(self.lost) >= LOST_MAX, 60)
        if len(self.lost) >= LOST_MAX:
            raise Failed(f"{len(self.lost)} of {self.done} lost: {self.lost[0]} ...")

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _run(self):
        while not self.over.is_set():
            began_s = time.monotonic()
            try:
                self._connection(f"bytes of {threading.get_ident()} at {began_s}".encode())
            except OSError as why:
                self.lost.append(str(why))
            with self.lock:
                self.done += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    def _connection(self, content):
        with self.netns.inside():
            stream = socket.create_connection(EDGE, CLIENT_S)
        with stream, stream.makefile("rb") as answers:
            stream.sendall(content)
            stream.shutdown(socket.SHUT_WR)
            if not answers.readline().startswith(b"127.0.") or answers.read() != content:
                raise OSError("not what was sent")


class Operator:
    def __init__(self, netns, daemon):
        self.netns, self.daemon, self.reloads = netns, daemon, 0

    def reload(self):
        """Every other time with a listener more and another timeout."""
        self.reloads += 1
        odd = self.reloads % 2
        self.daemon.config.write_text(self.daemon.configuration.replace(tables(5), tables(5 + odd) + MORE * odd))
        self.daemon.penstock("reload")
        if len(self.daemon.status()["listeners"]) != 1 + odd or (odd and not self.listens()):
            raise Failed(f"reload {self.reloads}: port {MORE_PORT} is {'not ' * odd}listened on")

    def listens(self):
        """A second longer than it is wanted, for handshakes under way."""
        return bool(self.netns.run("ss", "-Hltn", f"sport = :{MORE_PORT}").strip())


def tables(client_hello_s):
    return TABLES.format(connect=CONNECT_S, client_hello=client_hello_s, name=NAME, port=SERVER_PORT,
                         edge=f"{EDGE[0]}:{EDGE[1]}")


def prove(options, report):
    with Stage(options.build) as stage:
        netns = Netns()
        resolv_conf = stage.directory / "resolv.conf"
        resolv_conf.write_text(f"nameserver {NAME_SERVER}\n")
        mount(str(resolv_conf), "/etc/resolv.conf", None, MS_BIND)
        names = Names(stage, netns, NAME_SERVER)
        names.start(TTL_S)
        server = Server(netns)
        home = address_of(0)
        server.come(home)
        names.point(NAME, home)
        daemon = Daemon(stage, netns, tables(5))
        operator = Operator(netns, daemon)
        under_load(report, options, netns, names, server, daemon, operator)
        without_load(report, options, daemon, operator)
        daemon.stop()


def address_of(move):
    return f"127.0.1.{move + 1}"


def under_load(report, options, netns, names, server, daemon, operator):
    report.does(f"{options.connections} connections or more, {options.clients} at once, {options.reloads} reloads, "
                f"{options.moves} changes of address with TTL {TTL_S}, connect = {CONNECT_S} s")
    began_s = time.monotonic()
    load = Load(netns, options.clients)

    def move(number):
        new, old = address_of(number), address_of(number - 1)
        server.come(new)
        names.point(NAME, new)
        server.leave(old, refuse=number % 2 == 0)
        load.wait(f"connections to {new}", lambda: server.served[new])
        time.sleep(ASKED_AGAIN_S)
    acts = [(n / (options.reloads + 1), operator.reload) for n in range(1, options.reloads + 1)]
    acts += [(n / (options.moves + 1), functools.partial(move, n)) for n in range(1, options.moves + 1)]
    for _, act in sorted(acts, key=lambda due: due[0]):
        before = load.done
        act()
        load.wait("more connections", lambda: load.done >= before + options.connections // len(acts))
    load.end()
    daemon.wait_active(0)
    totals = daemon.totals()
    served = server.served
    report.figure("load", f"{load.done / (time.monotonic() - began_s):.0f} connections/s, "
                  f"{min(served.values())} to {max(served.values())} at each address")
    report.claim(load.done >= options.connections and not load.lost, "lost", f"{len(load.lost)} of {load.done}: {'; '.join(load.lost[:5]) or 'none'}")
    report.claim(len(served) == options.moves + 1, "moves", f"served at {len(served)} addresses")
    report.claim(load.slowest_s <= CONNECT_S + 1, "slowest", f"{load.slowest_s:.2f} s, connect + 1 s at most")
    report.claim(totals["accepted"] == load.done == sum(totals["closed"].values()), "accounts",
                 f"accepted {totals['accepted']}, closed {sum(totals['closed'].values())}, clients {load.done}")


def without_load(report, options, daemon, operator):
    for _ in range(WARM_RELOADS):
        operator.reload()
    before, began_s = own_bytes(daemon.worker), time.monotonic()
    for _ in range(options.idle_reloads):
        operator.reload()
    each_s = (time.monotonic() - began_s) / max(options.idle_reloads, 1)
    wait_for("the listener that is not wanted to be closed",
             lambda: operator.listens() == bool(operator.reloads % 2))
    grown = own_bytes(daemon.worker) - before
    report.claim(grown <= GROWTH_MAX, "memory", f"{mib(grown)} more after {options.idle_reloads} reloads "
                 f"of {1000 * each_s:.0f} ms; {mib(before)} after the first {WARM_RELOADS}")
