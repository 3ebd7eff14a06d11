# SPDX-License-Identifier: Apache-2.0
"""What is behind the edge is not up yet, goes away, comes back."""

from scene import HOME, MAILBOX, WWW
from stage import wait_for
from story import Story, timed

RECOVERY_S = 10  # an interval of the checks


class Outages(Story):
    ttl_s = 1

    def test_mailbox_and_its_name_are_not_there_at_boot(self):
        self.names.point(MAILBOX)
        self.mailbox.stop_smtp()
        try:
            edge = self.start_edge()
            self.assertEqual(self.internet.curl(WWW, 4), f"{WWW} at local-web\n")
            self.assertFalse(self.internet.greeted(5))
            wait_for("the edge to say whom it misses", lambda: MAILBOX in edge.process.log())
        finally:
            self.mailbox.start_smtp()
        self.names.point(MAILBOX, *HOME.values())
        self.recovers()

    def test_name_server_is_not_there_at_boot(self):
        with self.names.down():
            self.start_edge()
            self.assertEqual(self.internet.curl(WWW, 4), f"{WWW} at local-web\n")
            self.assertFalse(self.internet.greeted(1))
        self.recovers()

    def test_mailbox_flaps(self):
        edge = self.start_edge()
        took_s = []
        for _ in range(3):
            self.internet.deliver()
            self.mailbox.stop_smtp()
            self.assertFalse(self.internet.greeted(5))
            self.mailbox.start_smtp()
            took_s.append(self.internet.first_greeting_s(RECOVERY_S))
        self.figure("first greeting " + ", ".join(f"{s:.2f}" for s in took_s) + " s after each return")
        self.assertTrue(edge.process.running())

    def recovers(self):
        seconds = self.internet.first_greeting_s(RECOVERY_S)
        self.figure(f"first greeting {seconds:.2f} s after the return")
        # Of which a busy machine leaves one alone.
        self.assertLess(min(timed(self.internet.deliver)[0] for _ in range(3)), 1)
