# SPDX-License-Identifier: Apache-2.0
"""Reads a PROXY v2 header from a socket and nothing behind it (haproxy/doc/proxy-protocol.txt, 2.2)."""
import socket
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def recv_exactly(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError("end of stream inside the PROXY header")
        data += more
    return data


def read_client_address(sock):
    """The client's address as text. Raises ConnectionError where no PROXY v2 header comes first."""
    head = recv_exactly(sock, 16)
    if head[:12] != SIGNATURE or head[12] != 0x21:
        raise ConnectionError("a PROXY v2 header is required here")
    body = recv_exactly(sock, struct.unpack("!H", head[14:])[0])
    if head[13] == 0x11:
        return socket.inet_ntop(socket.AF_INET, body[:4])
    if head[13] == 0x21:
        return socket.inet_ntop(socket.AF_INET6, body[:16])
    raise ConnectionError("a PROXY v2 header for TCP is required here")
