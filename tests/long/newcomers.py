#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""newcomers.py EDGE_PORT SERVER_PORT: clients that connect through an edge on this loopback at a steady pace, and the server
behind it: each sends 1 KiB and gets 1 KiB. Says "dialling". SIGUSR1: a tenth of the pace. SIGTERM: no more of them; then a
line of JSON: of each when it came (CLOCK_MONOTONIC), the seconds until it had its answer, and "served" or what became of it."""
import collections
import errno
import json
import select
import signal
import socket
import sys
import time

from traffic import Pattern

PER_S = 100
CLIENT_S = 5  # a client's patience
MESSAGE_BYTES = 1 << 10
REQUEST, ANSWER = (Pattern(seed).at(0, MESSAGE_BYTES) for seed in (1, 2))
WORDS = {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.ETIMEDOUT: "timed out"}


class Peer:
    """A client, or the server's end of one's connection."""

    def __init__(self, stream, began_s=None):
        self.stream, self.began_s = stream, began_s
        self.content = b""
        self.asked = self.over = False


class Newcomers:
    def __init__(self, edge_port, server_port):
        self.edge = ("127.0.0.1", edge_port)
        self.listener = socket.create_server(("127.0.0.1", server_port), backlog=1024)
        self.listener.setblocking(False)
        self.epoll, self.peers = select.epoll(), {}
        self.epoll.register(self.listener, select.EPOLLIN)
        self.waiting = collections.deque()  # clients, in the order in which they came
        self.seen = []

    def run(self, until, per_s):
        due_s = time.monotonic()
        while not until():
            now_s = time.monotonic()
            if (rate := per_s()) and due_s <= now_s:
                due_s = max(due_s + 1 / rate, now_s - 1 / rate)
                self._dial(now_s)
            while self.waiting and (self.waiting[0].over or now_s - self.waiting[0].began_s > CLIENT_S):
                late = self.waiting.popleft()
                if not late.over:
                    self._judge(late, "timed out")
            for fd, _ in self.epoll.poll(max(0, due_s - now_s) if rate else 0.01):
                if fd == self.listener.fileno():
                    self._accept()
                elif peer := self.peers.get(fd):
                    self._ready(peer)

    def _dial(self, now_s):
        client = Peer(socket.socket(), now_s)
        client.stream.setblocking(False)
        self._add(client, select.EPOLLOUT)
        self.waiting.append(client)
        code = client.stream.connect_ex(self.edge)
        if code not in (0, errno.EINPROGRESS):
            self._judge(client, WORDS.get(code, errno.errorcode[code]))

    def _accept(self):
        try:
            stream = self.listener.accept()[0]
        except OSError:  # it has gone again
            return
        stream.setblocking(False)
        self._add(Peer(stream), select.EPOLLIN)

    def _add(self, peer, events):
        self.peers[peer.stream.fileno()] = peer
        self.epoll.register(peer.stream, events)

    def _ready(self, peer):
        is_client = peer.began_s is not None
        try:
            if is_client and not peer.asked:
                peer.asked = True
                peer.stream.sendall(REQUEST)
                self.epoll.modify(peer.stream, select.EPOLLIN)
                return
            content = peer.stream.recv(2 * MESSAGE_BYTES)
            peer.content += content
            if is_client and (not content or len(peer.content) >= MESSAGE_BYTES):
                self._judge(peer, "served" if peer.content == ANSWER else "corrupt" if content else "closed")
            elif not content:
                self._close(peer)
            elif not is_client and len(peer.content) >= MESSAGE_BYTES:
                peer.stream.sendall(ANSWER if peer.content == REQUEST else peer.content)
        except BlockingIOError:  # the event was of another, whose descriptor this one has now
            pass
        except OSError as error:
            if is_client:
                self._judge(peer, WORDS.get(error.errno, error.strerror))
            else:
                self._close(peer)

    def _judge(self, client, word):
        self.seen.append((client.began_s, time.monotonic() - client.began_s, word))
        self._close(client)

    def _close(self, peer):
        peer.over = True
        del self.peers[peer.stream.fileno()]
        peer.stream.close()


def main():
    asked = set()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.add(number))
    newcomers = Newcomers(*map(int, sys.argv[1:]))
    print("dialling", flush=True)
    newcomers.run(lambda: signal.SIGTERM in asked, lambda: PER_S / (10 if signal.SIGUSR1 in asked else 1))
    newcomers.run(lambda: not newcomers.waiting, lambda: 0)
    print(json.dumps(sorted(newcomers.seen)))


if __name__ == "__main__":
    main()
