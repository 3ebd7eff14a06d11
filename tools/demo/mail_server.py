#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""mail_server.py ADDRESS PORT: a mail server that speaks first and knows its clients by PROXY v2 alone.

It greets with the client's address and answers a message with its size and SHA-256, so a client sees that the server
knew it and that every byte arrived.
"""
import hashlib
import socket
import socketserver
import sys

from proxy_v2 import read_client_address


class Session(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            self.converse(read_client_address(self.request))
        except ConnectionError as gone:
            print(f"{self.client_address[0]}: {gone}", file=sys.stderr, flush=True)

    def say(self, line):
        self.request.sendall(line.encode() + b"\r\n")

    def converse(self, client):
        self.say(f"220 demo ESMTP, you are {client}")
        lines = self.request.makefile("rb")
        for line in lines:
            verb = line.split()[0].upper() if line.split() else b""
            if verb == b"DATA":
                self.say("354 go ahead")
                digest, size = hashlib.sha256(), 0
                for body in lines:
                    if body == b".\r\n":
                        break
                    digest.update(body)
                    size += len(body)
                self.say(f"250 accepted {size} bytes, sha256 {digest.hexdigest()}")
            elif verb == b"QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    address, port = sys.argv[1:]
    Server.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with Server((address, int(port)), Session) as server:
        print("serving", flush=True)
        server.serve_forever()
