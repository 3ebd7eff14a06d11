# SPDX-License-Identifier: Apache-2.0
"""Bytes both ways through one flow, every one checked by its offset, and segments that TCP itself would not send."""
import fcntl
import random
import socket
import struct
import termios
import threading
import time

PERIOD_BYTES = 1_048_573  # prime: no loss or doubling of a round number of bytes looks right
READ_BYTES = 256 << 10
SEGMENT_BYTES = 1300
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # linux/tcp.h
SND_CWND_AT = 80  # of tcpi_snd_cwnd in struct tcp_info
REPAIR_ON, REPAIR_OFF_NO_PROBE, RECEIVE_QUEUE, SEND_QUEUE = 1, -1, 1, 2


class Pattern:
    def __init__(self, seed):
        block = random.Random(seed).randbytes(PERIOD_BYTES)
        self.twice = block + block[:READ_BYTES]

    def at(self, offset, size):
        start = offset % PERIOD_BYTES
        return self.twice[start:start + size]


class Stream:
    """One direction: a thread that sends, one that reads and checks. At most window_bytes are on their way, so the
    flow is busy all the time and yet no reader is late."""

    def __init__(self, source, target, seed, *, chunk_bytes_max, window_bytes, disturb=None):
        self.source, self.target = source, target
        self.pattern = Pattern(seed)
        self.dice = random.Random(~seed)
        self.chunk_bytes_max, self.window_bytes = chunk_bytes_max, window_bytes
        self.disturb = disturb  # on the sender's thread: (socket, pattern, offset, dice) -> offset it has sent up to
        self.sent = self.received = 0
        self.wrong_at = None
        self.end = "none"
        self.stopping = False
        self.moved = threading.Condition()
        self.threads = [threading.Thread(target=body, daemon=True) for body in (self._send, self._read)]
        for thread in self.threads:
            thread.start()

    def _send(self):
        try:
            while not self.stopping:
                with self.moved:
                    self.moved.wait_for(lambda: self.sent - self.received < self.window_bytes or self.stopping)
                size = self.dice.randint(1, self.chunk_bytes_max)
                owed = self.disturb(self.source, self.pattern, self.sent, self.dice) - self.sent if self.disturb else 0
                self._send_next(size)
                if owed > size:
                    self._send_next(owed - size + 1)
            self.source.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.end = f"sender: {error.strerror}"

    def _send_next(self, size):
        self.source.sendall(self.pattern.at(self.sent, size))
        self.sent += size

    def _read(self):
        bytes_in = bytearray(READ_BYTES)
        try:
            while size := self._receive_into(bytes_in):
                if self.wrong_at is None and bytes_in[:size] != self.pattern.at(self.received, size):
                    expected = self.pattern.at(self.received, size)
                    self.wrong_at = self.received + next(i for i in range(size) if bytes_in[i] != expected[i])
                with self.moved:
                    self.received += size
                    self.moved.notify_all()
            self.end = "FIN"
        except OSError as error:
            self.end = f"reader: {error.strerror}"
        with self.moved:
            self.stopping = True
            self.moved.notify_all()

    def _receive_into(self, bytes_in):
        while True:
            try:
                return self.target.recv_into(bytes_in)
            except PermissionError:  # TCP_REPAIR was on at that moment, to inject
                continue

    def wait_progress(self, limit_s):
        """Whether another byte arrived."""
        with self.moved:
            seen = self.received
            return self.moved.wait_for(lambda: self.received > seen, limit_s)

    def stop(self):
        with self.moved:
            self.stopping = True
            self.moved.notify_all()

    def join(self, limit_s):
        for thread in self.threads:
            thread.join(limit_s)
        return not any(thread.is_alive() for thread in self.threads)


class RawSegments:
    """Sends bytes once more together with bytes not sent yet, or bytes from further ahead: as reordering and
    retransmission do, and as any peer can at will. IPv4. REQUIRES: made inside the namespace of the sockets.

    The receiver then acknowledges what the sender's TCP has not sent, which it does not believe until it has: so only
    when nothing is unacknowledged, and what is owed follows in two segments at once, or the connection locks up."""

    def __init__(self):
        self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.injected = 0

    def disturb(self, stream, pattern, offset, dice):
        if offset < 2000 or dice.randrange(7) or not self.acknowledged(stream):
            return 0
        shift = 700 if dice.randrange(3) == 0 else -dice.randint(1, 1200)
        self.inject(stream, shift, pattern.at(offset + shift, SEGMENT_BYTES))
        self.injected += 1
        return offset + shift + SEGMENT_BYTES

    @staticmethod
    def acknowledged(stream):
        for _ in range(20):
            if struct.unpack("i", fcntl.ioctl(stream, termios.TIOCOUTQ, b"\0" * 4))[0] == 0:
                info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SND_CWND_AT + 4)
                return struct.unpack_from("I", info, SND_CWND_AT)[0] >= 4
            time.sleep(0.0001)
        return False

    def inject(self, stream, shift, payload):
        """As if by `stream`, `shift` bytes after the next byte it would send."""
        tcp = socket.IPPROTO_TCP
        stream.setsockopt(tcp, TCP_REPAIR, REPAIR_ON)
        stream.setsockopt(tcp, TCP_REPAIR_QUEUE, SEND_QUEUE)
        next_sent = stream.getsockopt(tcp, TCP_QUEUE_SEQ)
        stream.setsockopt(tcp, TCP_REPAIR_QUEUE, RECEIVE_QUEUE)
        next_received = stream.getsockopt(tcp, TCP_QUEUE_SEQ)
        stream.setsockopt(tcp, TCP_REPAIR, REPAIR_OFF_NO_PROBE)
        (source, source_port), (target, target_port) = stream.getsockname(), stream.getpeername()
        addresses = socket.inet_aton(source) + socket.inet_aton(target)

        def header(checksum):
            return struct.pack("!HHIIBBHHH", source_port, target_port, next_sent + shift & 0xffffffff,
                               next_received & 0xffffffff, 5 << 4, 0x18, 512, checksum, 0)  # PSH, ACK; RFC 9293 3.1
        length = len(header(0)) + len(payload)
        pseudo = addresses + struct.pack("!BBH", 0, tcp, length)
        segment = header(internet_checksum(pseudo + header(0) + payload)) + payload
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, tcp, 0) + addresses
        self.raw.sendto(ip + segment, (target, 0))


def internet_checksum(data):  # RFC 1071
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
