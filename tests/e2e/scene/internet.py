# SPDX-License-Identifier: Apache-2.0
"""The internet side: mail clients, browsers and strangers, with the addresses of CLIENT."""
import imaplib
import itertools
import smtplib
import socket
import ssl
import time

from mailbox_host import DOMAIN, PASSWORD
from scene import CLIENT, EDGE
from stage import PATIENCE_S

tags = (f"mail-{number}" for number in itertools.count(1))


class Internet:
    def __init__(self, netns, authority):
        self.netns, self.authority = netns, authority
        self.tls = ssl.create_default_context(cafile=authority)

    def run(self, *words):
        return self.netns.run(*words)

    def swaks(self, family, port, *words, server=EDGE):
        """Sends a mail as the port wants it, TLS with a verified certificate where there is any; its tag."""
        tag = next(tags)
        secure = {25: "--tls", 587: "--tls", 465: "--tls-on-connect"}[port]
        self.run("swaks", f"-{family}", "--server", server[family], "--port", port, "--from", "a@example.org",
                 "--to", f"box@{DOMAIN}", "--ehlo", "client.example.org", secure, "--tls-verify", "--tls-ca-path",
                 self.authority, "--header", f"Message-Id: <{tag}@client.example.org>", "--hide-all", *words)
        return tag

    def smtp(self, *, server=EDGE[4], port=25, client=CLIENT[4]):
        """A session after its EHLO."""
        with self.netns.inside():
            session = smtplib.SMTP(server, port, "client.example.org", PATIENCE_S, (client, 0))
        session.ehlo()
        return session

    def deliver(self, **where):
        """A small mail, without TLS; its tag. Raises when any step fails."""
        with self.smtp(**where) as session:
            return self.send(session)

    @staticmethod
    def send(session):
        tag = next(tags)
        session.sendmail("a@example.org", f"box@{DOMAIN}",
                         f"Message-Id: <{tag}@client.example.org>\r\nSubject: water\r\n\r\nAll of it.\r\n")
        return tag

    def imap(self, family, port, user="reader", server=EDGE):
        """A session after its login, with TLS."""
        with self.netns.inside():
            if port == 993:
                session = imaplib.IMAP4_SSL(server[family], port, ssl_context=self.tls, timeout=PATIENCE_S)
            else:
                session = imaplib.IMAP4(server[family], port, PATIENCE_S)
                session.starttls(self.tls)
        session.login(user, PASSWORD)
        return session

    def connect(self, port, family=4, server=EDGE, limit_s=PATIENCE_S):
        with self.netns.inside():
            stream = socket.create_connection((server[family], port), limit_s)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def curl(self, name, family, path="/", *words):
        server = f"[{EDGE[6]}]" if family == 6 else EDGE[4]
        return self.run("curl", "-sS", "--max-time", PATIENCE_S, "--cacert", self.authority, "--resolve",
                        f"{name}:443:{server}", *words, f"https://{name}{path}")

    def openssl(self, family, port, *words):
        """What s_client says of a handshake with a certificate that it verified."""
        server = f"[{EDGE[6]}]" if family == 6 else EDGE[4]
        return self.run("openssl", "s_client", "-brief", "-verify_return_error", "-CAfile", self.authority,
                        "-connect", f"{server}:{port}", *words)

    def greeted(self, limit_s):
        """Whether a mail server greets a new connection within that time."""
        try:
            with self.connect(25, limit_s=limit_s) as stream:
                return stream.recv(3) == b"220"
        except OSError:
            return False

    def first_greeting_s(self, limit_s):
        """From now until one connection after the other has led to a mail server; seconds."""
        began_s = time.monotonic()
        while not self.greeted(limit_s):
            if time.monotonic() - began_s > limit_s:
                raise TimeoutError(f"no mail server for {limit_s} s")
            time.sleep(0.02)
        return time.monotonic() - began_s


class IdleImap:
    """RFC 2177."""

    def __init__(self, session):
        self.session = session
        session.select("INBOX", readonly=True)
        session.send(b"idle IDLE\r\n")
        if not session.readline().startswith(b"+"):
            raise OSError("the server does not idle")

    def wait_exists(self):
        while not (line := self.session.readline()).endswith(b"EXISTS\r\n"):
            if not line:
                raise EOFError("the server has gone")

    def done(self):
        self.session.send(b"DONE\r\n")
        while not self.session.readline().startswith(b"idle OK"):
            pass
        self.session.logout()


class SlowTls:
    """A TLS client that writes its ClientHello in segments of `segment_bytes`."""

    def __init__(self, stream, context, name, segment_bytes):
        self.stream, self.segment_bytes = stream, segment_bytes
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.hello_bytes = 0
        self._go_on(self.tls.do_handshake)

    def get(self, path, host):
        """The answer, with its head."""
        self._go_on(lambda: self.tls.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()))
        answer = b""
        while piece := self._go_on(lambda: self.tls.read(65536)):
            answer += piece
        return answer.decode()

    def _go_on(self, action):
        while True:
            try:
                result = action()
                self._write_out()
                return result
            except ssl.SSLWantReadError:
                self._write_out()
                self.incoming.write(self.stream.recv(65536))

    def _write_out(self):
        data = self.outgoing.read()
        size = self.segment_bytes if not self.hello_bytes else len(data)
        self.hello_bytes = self.hello_bytes or len(data)
        for at in range(0, len(data), max(size, 1)):
            self.stream.sendall(data[at:at + size])
