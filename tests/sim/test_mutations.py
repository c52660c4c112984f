"""The crash machine notices when a sync is taken out, or a pair of steps swapped: a few of each.

`make soak` tries them all (tests/sim/mutations.py).
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.sim import mutations

_TOGETHER = "files/syncing.py:_sync < files/syncing.py:sync_together < local/deliver.py:deliver_together"

#: One of each kind; by what their names contain, as the functions may move.
_SYNCS = (
    "_publish todo",
    "sync < queue/accept.py:commit mess",
    "sync < queue/preprocess.py:_preprocess_batch local",
    "append_bounce bounce",
    f"_sync_files < {_TOGETHER} Maildir",
    f"_sync_directories < {_TOGETHER} Maildir",
    "_append Mailbox",
    "_make_file lock",
    "journal.py:write journal",
    "journal.py:_create journal",
    "large.py:flush journal",
    "settle.py:settle info",
    "settle.py:settle journal",
)


class Mutations(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        os.mkdir(self.home)

    def test_syncs(self) -> None:
        sites = mutations.sites(self.home)
        for name in _SYNCS:
            found = [site for site in sites if site.endswith(name)]
            self.assertTrue(found, f"nobody makes the sync {name!r} any more")
            for site in found:
                self.assertIsNotNone(mutations.judge_site(self.home, site, 2), f"nobody misses {site}")

    def test_swaps(self) -> None:
        for swap in mutations.SWAPS:
            with swap():
                self.assertIsNotNone(mutations.noticed(self.home, 2), f"nobody notices {swap.__name__}")

    def test_journal(self) -> None:
        for swap in mutations.JOURNAL_SWAPS:
            with swap():
                found = mutations.noticed(self.home, 2, mutations.JOURNAL_STORIES)
                self.assertIsNotNone(found, f"nobody notices {swap.__name__}")

    def test_survivors(self) -> None:
        """The list of those that may survive has no dead entries."""
        self.assertLessEqual(set(mutations.KNOWN_SURVIVORS), set(mutations.sites(self.home)))
