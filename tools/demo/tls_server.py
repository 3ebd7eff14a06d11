#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""tls_server.py NAME ADDRESS PORT CERTIFICATE KEY [--proxy]: answers every request with its name and the client it saw.

With --proxy it requires a PROXY v2 header before the ClientHello and believes it; without, it sees who connected.
"""
import socket
import socketserver
import ssl
import sys

from proxy_v2 import read_client_address

ARGUMENTS = [a for a in sys.argv[1:] if a != "--proxy"]
NAME, ADDRESS, PORT, CERTIFICATE, KEY = ARGUMENTS
PROXY = "--proxy" in sys.argv
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
TLS.load_cert_chain(CERTIFICATE, KEY)


class Session(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            client = read_client_address(self.request) if PROXY else self.client_address[0]
            with TLS.wrap_socket(self.request, server_side=True) as stream:
                while stream.recv(4096):
                    body = f"I am {NAME}, you are {client}\n"
                    stream.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        except OSError as gone:
            print(f"{self.client_address[0]}: {gone}", file=sys.stderr, flush=True)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    Server.address_family = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
    with Server((ADDRESS, int(PORT)), Session) as server:
        print("serving", flush=True)
        server.serve_forever()
