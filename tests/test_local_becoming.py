"""Taking on somebody's user id for good, as the children of lspawn do (doc/security.md)."""

from __future__ import annotations

import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from qtwist.local.becoming import become

UID, GID, GROUP = 54321, 54322, 54323


def in_child(uid: int, gid: int, groups: list[int]) -> str:
    """Who a child is that has become somebody; or which error kept it from that."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([0, 4])  # what a daemon might have
            try:
                become(uid, gid, groups)
                said = f"{os.getresuid()} {os.getresgid()} {os.getgroups()}"
            except OSError as error:
                said = type(error).__name__
            os.write(writer, said.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


class BecomeTests(SynchronousTestCase):
    def setUp(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can become somebody else")

    def test_for_good(self) -> None:
        """All three ids, and no group but those that were named."""
        self.assertEqual(in_child(UID, GID, [GROUP]), f"({UID}, {UID}, {UID}) ({GID}, {GID}, {GID}) [{GROUP}]")
        self.assertEqual(in_child(UID, GID, []), f"({UID}, {UID}, {UID}) ({GID}, {GID}, {GID}) []")

    def test_half_of_it(self) -> None:
        """Where the system says yes and does nothing, nobody goes on."""
        for lies in ("setresuid", "setresgid"):
            with mock.patch(f"os.{lies}"):
                self.assertEqual(in_child(UID, GID, []), "PermissionError", lies)

    def test_never_root(self) -> None:
        self.assertEqual(in_child(0, GID, []), "PermissionError")
