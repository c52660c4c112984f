"""Starting and stopping: one clear error line and a non-zero exit when it cannot start, exit 0 after TERM."""

from __future__ import annotations

import os
import signal
import socket

from tests.e2e.harness import ME, Daemon, DaemonCase


class RefusedStartTests(DaemonCase):
    """Issue 2, item 1: a missing home, a broken control file, a port in use; and a second daemon on one queue."""

    def refused(self, *named: str) -> None:
        """The daemon ends with an error, and one line of its output names all of `named`."""
        daemon = Daemon(self)
        self.assertNotEqual(daemon.exit_code(), 0, str(daemon.log))
        clear = [line for line in daemon.log.lines if all(word in line for word in named)]
        self.assertEqual(len(clear), 1, f"{named} in {daemon.log}")
        self.assertNotIn("Traceback", str(daemon.log))

    def test_missing_home(self) -> None:
        self.home = os.path.join(self.directory, "elsewhere")
        self.refused(self.home)

    def test_broken_control_file(self) -> None:
        self.write_control("concurrencylocal", "many\n")
        self.refused("concurrencylocal", "many")

    def test_unknown_role(self) -> None:
        self.write_control("listen", f"smtp tcp:{self.port}:interface=127.0.0.1\nsmpt tcp:0\n")
        self.refused("listen, line 2", "smpt")

    def test_port_in_use(self) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", self.port))
            holder.listen()
            self.refused("listen", str(self.port))

    def test_second_daemon_on_one_queue(self) -> None:
        first = self.start()
        self.refused("sendmutex", "is running on this queue")
        self.assertEqual(first.stop(), 0)


class SignalTests(DaemonCase):
    """spec/qmail.md §9.2."""

    def test_term(self) -> None:
        daemon = self.start()
        self.assertEqual(daemon.stop(), 0)
        self.assertTrue(daemon.log.find("status: exiting$"))

    def test_hup_rereads_locals(self) -> None:
        self.write_control("rcpthosts", f"{ME}\nnew.test\n")
        daemon = self.start()
        self.write_control("locals", f"{ME}\nnew.test\n")
        daemon.process.send_signal(signal.SIGHUP)
        # No line tells that HUP was obeyed (§9.2), but a connection made after it is a later event.
        self.send([f"{self.user}@new.test"])
        daemon.log.wait(rf"starting delivery 1: msg \d+ to local {self.user}@new\.test$")
        self.assertEqual(daemon.stop(), 0)

    def test_hup_keeps_what_was_right(self) -> None:
        """A file with a wrong value is named, and mail goes on as before: a CR at its end is no new domain."""
        daemon = self.start()
        self.write_control("locals", f"{ME}\r\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.log.wait(r"alert: unable to reread controls: .*/locals, line 1: found a carriage return")
        self.send([f"{self.user}@{ME}"])
        daemon.log.wait(rf"starting delivery 1: msg \d+ to local {self.user}@{ME}$")
        self.assertEqual(daemon.stop(), 0)
