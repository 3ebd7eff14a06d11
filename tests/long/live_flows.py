#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""live_flows.py NUMBER EDGE_PORT SERVER_PORT PATIENCE_S: both ends of so many flows through an edge on this loopback: a third idle, a
third ping-pong, a third bulk both ways, every byte checked by its offset. Says "open" once each has carried bytes both ways.
SIGUSR1: a tenth of the pace. SIGTERM: every flow carries a last message both ways and ends. Then a line of JSON: lost, how
many by how, and the bytes that arrived."""
import collections
import errno
import json
import resource
import select
import signal
import socket
import sys
import time

from traffic import READ_BYTES, Pattern

KINDS = ("idle", "ping-pong", "bulk")
TURN_S = 0.1  # in which each ping-pong sends a ping, and each end of a bulk flow a chunk
MESSAGE_BYTES, CHUNK_BYTES = 1 << 10, 16 << 10
FLOW_SHIFT, DOWN_SHIFT = 7919, 524_287  # so that no two streams look alike
PATTERN = Pattern(2026)


class End:
    """What this end sends is the pattern from `shift` on, up to `owed`."""

    def __init__(self, flow, stream, shift):
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flow, self.stream, self.shift = flow, stream, shift
        self.sent = self.owed = self.received = 0
        self.saw_fin = False


class Flow:
    def __init__(self, number, client, server):
        self.kind = KINDS[number % len(KINDS)]
        self.client = End(self, client, number * FLOW_SHIFT)
        self.server = End(self, server, number * FLOW_SHIFT + DOWN_SHIFT)
        self.client.peer, self.server.peer = self.server, self.client
        self.closing = self.over = False
        self.lost = None  # how

    def at_rest(self):
        """All that was owed has arrived."""
        return all(end.sent == end.owed == end.peer.received for end in (self.client, self.server))


class Flows:
    def __init__(self, number, edge_port, server_port, patience_s):
        self.patience_s = patience_s
        self.epoll, self.ends, self.flows = select.epoll(), {}, []
        with socket.create_server(("127.0.0.1", server_port), backlog=number) as listener:
            listener.settimeout(patience_s)
            for n in range(number):
                client = socket.create_connection(("127.0.0.1", edge_port), patience_s)
                self.flows.append(Flow(n, client, listener.accept()[0]))
        for flow in self.flows:
            for end in (flow.client, flow.server):
                self.ends[end.stream.fileno()] = end
                self.epoll.register(end.stream, select.EPOLLIN)

    def run(self, patience_s, until, pace=lambda: None):
        """Serves for so long at most, or until it is so. `pace`: seconds in which each flow has a turn; None: it has none."""
        ends_s, turn_s, turn = time.monotonic() + patience_s, time.monotonic(), 0
        busy = [flow for flow in self.flows if flow.kind != "idle"]
        while not until() and (now_s := time.monotonic()) < ends_s:
            if (round_s := pace()) and busy:
                turn_s = max(turn_s, now_s - round_s)  # who comes late does not make up for more than a round
                while turn_s <= now_s:
                    self._turn(busy[turn % len(busy)])
                    turn, turn_s = turn + 1, turn_s + round_s / len(busy)
            for fd, events in self.epoll.poll(max(0, min(turn_s, ends_s) - now_s) if round_s and busy else 0.01):
                if end := self.ends.get(fd):
                    self._ready(end, events)

    def owe(self, flow, size):
        """Both ways. The server's end of a ping-pong sends as much as it has received."""
        for end in (flow.client,) if flow.kind == "ping-pong" else (flow.client, flow.server):
            end.owed += size
            self._send(end)

    def _turn(self, flow):
        if flow.over:
            return
        if flow.kind == "bulk":
            for end in (flow.client, flow.server):
                if end.sent == end.owed:  # else TCP has not taken the chunk before
                    end.owed += CHUNK_BYTES
                    self._send(end)
        elif flow.at_rest():
            self.owe(flow, MESSAGE_BYTES)

    def _send(self, end):
        try:
            while not end.flow.over and end.sent < end.owed:
                end.sent += end.stream.send(PATTERN.at(end.shift + end.sent, min(end.owed - end.sent, CHUNK_BYTES)))
        except BlockingIOError:
            self.epoll.modify(end.stream, select.EPOLLIN | select.EPOLLOUT)
        except OSError as error:
            self._lose(end.flow, error)

    def _ready(self, end, events):
        if events & select.EPOLLOUT:
            self.epoll.modify(end.stream, select.EPOLLIN)
            self._send(end)
        if events & ~select.EPOLLOUT and not end.flow.over:
            self._read(end)

    def _read(self, end):
        try:
            content = end.stream.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(end.flow, error)
            return
        flow = end.flow
        if not content:
            self._saw_fin(end)
        elif content != PATTERN.at(end.peer.shift + end.received, len(content)) or end.received + len(content) > end.peer.sent:
            self._end(flow, "corrupt")
        else:
            end.received += len(content)
            if flow.kind == "ping-pong" and end is flow.server:
                end.owed = end.received
                self._send(end)

    def _saw_fin(self, end):
        flow = end.flow
        if not flow.closing:
            self._end(flow, "FIN")
            return
        end.saw_fin = True
        self.epoll.unregister(end.stream)
        if end.peer.saw_fin:
            self._end(flow)
        elif end is flow.server:
            self._shut(end)

    def _shut(self, end):
        try:
            end.stream.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._lose(end.flow, error)

    def _lose(self, flow, error):
        # EPIPE: a RST came after a FIN, which nobody had read yet.
        words = {errno.ECONNRESET: "RST", errno.EPIPE: "FIN", errno.ENOTCONN: "RST", errno.ETIMEDOUT: "timed out"}
        self._end(flow, words.get(error.errno, error.strerror))

    def _end(self, flow, lost=None):
        flow.over, flow.lost = True, lost
        for end in (flow.client, flow.server):
            del self.ends[end.stream.fileno()]
            end.stream.close()

    def finish(self):
        """A last message both ways, then the client's FIN, and the server's."""
        for flow in self.flows:
            if not flow.over:
                self.owe(flow, MESSAGE_BYTES)

        def all_over():
            for flow in self.flows:
                if not flow.over and not flow.closing and flow.at_rest():
                    flow.closing = True
                    self._shut(flow.client)
            return all(flow.over for flow in self.flows)
        self.run(self.patience_s, all_over)
        for flow in self.flows:
            if not flow.over:
                self._end(flow, "hung")


def main():
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    asked = set()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.add(number))
    flows = Flows(*map(int, sys.argv[1:4]), float(sys.argv[4]))
    for flow in flows.flows:
        flows.owe(flow, MESSAGE_BYTES)
    flows.run(flows.patience_s, lambda: all(flow.at_rest() or flow.over for flow in flows.flows))
    if not all(flow.at_rest() and not flow.over for flow in flows.flows):
        sys.exit("not every flow carries bytes both ways")
    print("open", flush=True)
    flows.run(float("inf"), lambda: signal.SIGTERM in asked, lambda: TURN_S * (10 if signal.SIGUSR1 in asked else 1))
    flows.finish()
    print(json.dumps({"lost": collections.Counter(flow.lost for flow in flows.flows if flow.lost),
                      "bytes": sum(end.received for flow in flows.flows for end in (flow.client, flow.server))}))


if __name__ == "__main__":
    main()
