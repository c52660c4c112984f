"""What greylisting has seen: an SQLite database that processes share and that outlives crashes. Blocking.

SQLite is what keeps a table right when a process dies in the middle, and lets several write to it. In its journal mode
"wal" with "normal" syncing, a crash of the system may forget the last seconds, which costs a client one more try.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time

import attrs

#: Seconds to wait for another process that writes.
PATIENCE = 5.0
#: Entries of strangers that are kept at most; beyond, the oldest go first.
MOST_STRANGERS = 500_000
#: After so many new entries of ours, what has expired is removed.
_SWEEP = 1000

_SCHEMA = """\
CREATE TABLE IF NOT EXISTS seen (
    network TEXT NOT NULL, sender BLOB NOT NULL, recipient BLOB NOT NULL,
    first REAL NOT NULL, last REAL NOT NULL, known INTEGER NOT NULL,
    PRIMARY KEY (network, sender, recipient)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON seen (known, last);
"""

Key = tuple[str, bytes, bytes]


@attrs.frozen
class Times:
    """In seconds: how long a stranger has to wait; after which time a stranger that has not come again is forgotten;
    after which one that is known."""

    block_expire: float = 5 * 60
    record_expire: float = 2 * 86400
    record_expire_good: float = 36 * 86400


class GreylistStore:
    """The database in `directory`, which is made if it is not there. May be used from several threads.

    A file that is no database, or a damaged one, is put aside as ``seen.damaged``, and a new one begun.
    """

    def __init__(self, directory: str, most: int = MOST_STRANGERS) -> None:
        self.path = os.path.join(directory, "seen")
        self._most = most
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._new = 0

    def see(self, key: Key, now: float, times: Times) -> float:
        """Note that network, sender and recipient `key` came at `now`; for how many seconds more to send it away, 0 for
        one that is known. sqlite3.Error, OSError."""
        with self._lock:
            try:
                return self._see(self._open(), key, now, times)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    self._close()
                    raise
                self._put_aside()
                return self._see(self._open(), key, now, times)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._close()

    def _see(self, connection: sqlite3.Connection, key: Key, now: float, times: Times) -> float:
        select = "SELECT first, last, known FROM seen WHERE network = ? AND sender = ? AND recipient = ?"
        row = connection.execute(select, key).fetchone()
        if row is not None and row[2] and now - row[1] < min(times.record_expire_good, 86400) / 2:
            return 0  # the usual case needs no writing
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            row = connection.execute(select, key).fetchone()
            first, known = now, False
            if row is not None and now - row[1] < (times.record_expire_good if row[2] else times.record_expire):
                first, known = min(row[0], now), bool(row[2])
            known = known or now - first >= times.block_expire
            connection.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?)", (*key, first, now, known))
            if row is None:
                self._new += 1
                if self._new % min(_SWEEP, self._most) == 0:
                    self._sweep(connection, now, times)
        return 0 if known else times.block_expire - (now - first)

    def _sweep(self, connection: sqlite3.Connection, now: float, times: Times) -> None:
        for known, age in ((0, times.record_expire), (1, times.record_expire_good)):
            connection.execute("DELETE FROM seen WHERE known = ? AND last < ?", (known, now - age))
        [strangers] = connection.execute("SELECT count(*) FROM seen WHERE known = 0").fetchone()
        if strangers > self._most:
            oldest = "SELECT last FROM seen WHERE known = 0 ORDER BY last LIMIT 1 OFFSET ?"
            connection.execute(f"DELETE FROM seen WHERE known = 0 AND last < ({oldest})", (strangers - self._most,))

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            connection = sqlite3.connect(self.path, PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                self._use_wal(connection)
                connection.execute("PRAGMA synchronous = normal")
                connection.executescript(_SCHEMA)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @staticmethod
    def _use_wal(connection: sqlite3.Connection) -> None:
        """SQLite does not wait for others to change a new database's mode, as it does for all else."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                connection.execute("PRAGMA journal_mode = wal")
                return
            except sqlite3.OperationalError:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.01)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _put_aside(self) -> None:
        self._close()
        os.replace(self.path, self.path + ".damaged")
        for suffix in ("-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.unlink(self.path + suffix)
