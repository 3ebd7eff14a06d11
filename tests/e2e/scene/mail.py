# SPDX-License-Identifier: Apache-2.0
"""Mail and its names through the edge: who the mailbox sees, whole and in any shape."""
import email
import hashlib
import os
import ssl
import threading
import time

from internet import IdleImap, SlowTls
from scene import CLIENT, MAILBOX_NAMES, WWW
from story import Story, timed

FAMILIES = (4, 6)


class Mail(Story):
    def setUp(self):
        super().setUp()
        self.start_edge()

    def test_postfix_logs_the_true_client_on_each_port(self):
        for family in FAMILIES:
            for port in sorted(self.mailbox.SMTP):
                tag = self.internet.swaks(family, port)
                self.assert_true_client(tag, port, CLIENT[family])
                self.figure(f"port {port}: {self.mailbox.last_line(self.mailbox.smtp_log, ': client=')}")

    def test_dovecot_logs_the_true_client_on_each_port(self):
        for family in FAMILIES:
            for port in sorted(self.mailbox.IMAP):
                user = f"reader-{family}-{port}"
                self.internet.imap(family, port, user).logout()
                self.assertEqual(self.mailbox.imap_client(user, port), CLIENT[family])
                self.figure(f"port {port}: {self.mailbox.last_line(self.mailbox.imap_log, 'Login: ')}")

    def test_each_name_reaches_its_web_server(self):
        for family in FAMILIES:
            for name in MAILBOX_NAMES:
                self.assertEqual(self.internet.curl(name, family), f"{name} at mailbox-web\n")
            self.assertEqual(self.internet.curl(WWW, family), f"{WWW} at local-web\n")
            other = "other.example.org"
            self.assertEqual(self.internet.curl(other, family, "/", "--insecure"), f"{other} at local-web\n")
            policy = self.internet.curl("mta-sts.example.net", family, "/.well-known/mta-sts.txt")
            self.assertRegex(policy, r"^version: STSv1\n")

    def test_openssl_verifies_starttls_and_implicit_tls(self):
        for family in FAMILIES:
            for port, starttls in ((25, "smtp"), (587, "smtp"), (143, "imap"), (465, None), (993, None)):
                words = ("-starttls", starttls) if starttls else ()
                self.assertIn("Verification: OK", self.internet.openssl(family, port, *words))

    def test_30_mb_of_mail_each_way(self):
        big = self.scene.stage.directory / "big.bin"
        big.write_bytes(os.urandom(22 << 20))  # 30 MB in base64
        sent_s, tag = timed(lambda: self.internet.swaks(4, 587, "--attach-type", "application/octet-stream", "--attach",
                                                       f"@{big}"))
        self.mailbox.wait_delivered(tag)
        with self.internet.imap(6, 993) as session:
            session.select("INBOX", readonly=True)
            number = session.search(None, "HEADER", "Message-Id", tag)[1][0].decode()
            read_s, (_, parts) = timed(lambda: session.fetch(number, "(RFC822)"))
        attached = [p.get_payload(decode=True) for p in email.message_from_bytes(parts[0][1]).walk()
                    if p.get_content_type() == "application/octet-stream"]
        self.assertEqual([hashlib.sha256(a).digest() for a in attached], [hashlib.sha256(big.read_bytes()).digest()])
        self.figure(f"{len(parts[0][1]) / 1e6:.1f} MB: {sent_s:.1f} s in, {read_s:.1f} s out")

    def test_every_idle_client_is_told_of_a_mail(self):
        idle = [IdleImap(self.internet.imap(family, 993, f"idle-{n}")) for n in range(10) for family in FAMILIES]
        began_s = time.monotonic()
        self.internet.deliver()
        for client in idle:
            client.wait_exists()
        self.figure(f"{len(idle)} told {1000 * (time.monotonic() - began_s):.0f} ms after the delivery began")
        for client in idle:
            client.done()

    def test_hello_in_1_byte_segments(self):
        for name, where in ((MAILBOX_NAMES[0], "mailbox-web"), (WWW, "local-web")):
            with self.internet.connect(443) as stream:
                client = SlowTls(stream, self.internet.tls, name, 1)
                self.assertIn(f"{name} at {where}\n", client.get("/", name))
        self.figure(f"{client.hello_bytes} segments")

    def test_hello_of_20_kib(self):
        context = ssl.create_default_context(cafile=self.internet.authority)
        context.set_alpn_protocols(["http/1.1", *(f"{number:0250}" for number in range(84))])
        for name, where in ((MAILBOX_NAMES[0], "mailbox-web"), (WWW, "local-web")):
            with self.internet.connect(443) as stream:
                client = SlowTls(stream, context, name, 1000)
                self.assertIn(f"{name} at {where}\n", client.get("/", name))
        self.assertGreater(client.hello_bytes, 20 << 10)
        self.figure(f"{client.hello_bytes} bytes")

    def test_200_deliveries_at_once(self):
        all_there = threading.Barrier(201)
        delivered = []

        def one():
            with self.internet.smtp() as session:
                all_there.wait(60)
                delivered.append(self.internet.send(session))
        began_s = time.monotonic()
        threads = [threading.Thread(target=one) for _ in range(200)]
        for thread in threads:
            thread.start()
        all_there.wait(60)
        open_s = time.monotonic() - began_s
        for thread in threads:
            thread.join()
        self.figure(f"open after {open_s:.1f} s, {len(delivered)} delivered after {time.monotonic() - began_s:.1f} s")
        self.assertEqual(len(delivered), 200)
        self.assertEqual({self.mailbox.smtp_client(tag, 25) for tag in delivered}, {CLIENT[4]})

    def test_a_stranger_forges_a_proxy_header(self):
        forged = {25: b"PROXY TCP4 203.0.113.66 192.0.2.1 4711 25\r\n",
                  143: bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c cb007142 c0000201 1267 008f")}
        for port, header in forged.items():
            with self.internet.connect(port) as stream:
                stream.sendall(header)
                stream.shutdown(1)
                answer = b"".join(iter(lambda: stream.recv(4096), b""))  # pylint: disable=cell-var-from-loop
                self.figure(f"port {port}: {answer.decode(errors='replace').splitlines()[-1]}")
        self.assert_true_client(self.internet.deliver(), 25, CLIENT[4])
        for taken_in in ("unknown[203.0.113.66]", "rip=203.0.113.66"):
            self.assertNotIn(taken_in, self.mailbox.smtp_log() + self.mailbox.imap_log())
