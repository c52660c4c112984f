"""The credential store: its text, its changes, and who is in it."""

from __future__ import annotations

import os
import threading

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth import store as store_module
from qtwist.auth.scram import ScramKeys
from qtwist.auth.store import CredentialStore, StoreError, changed_text, is_name, parse
from qtwist.files import replacing
from tests.auth_tools import MailHome, cheap
from tests.queue_tools import note_syncs

HASH = cheap(b"secret")
OTHER = cheap(b"other")

names = st.binary(min_size=1, max_size=20).map(bytes.lower).filter(is_name)
hashes = st.sampled_from([HASH, OTHER, b"{PLAIN}a: b#", b"$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"])
texts = st.lists(
    st.one_of(
        st.tuples(names, hashes).map(lambda pair: b"%b:%b" % pair),
        st.sampled_from([b"", b"  ", b"# a: comment", b"#joe:x"]),
    ),
    max_size=8,
    unique_by=lambda line: line.partition(b":")[0] if line.strip() and not line.startswith(b"#") else object(),
).map(lambda lines: b"".join(line + b"\n" for line in lines))


class TextTests(SynchronousTestCase):
    def test_parse(self) -> None:
        text = b"# who may log in\n\njoe:%b\nann@shop.example:{PLAIN}a:b c \n" % HASH
        self.assertEqual(parse(text), {b"joe": HASH, b"ann@shop.example": b"{PLAIN}a:b c "})
        self.assertEqual(parse(b"joe:" + HASH), {b"joe": HASH})

    def test_line_numbers(self) -> None:
        """Errors name the line, and never show what is in it."""
        for line in (
            b"joe",
            b"joe:sesame",
            b":" + HASH,
            b"Joe:" + HASH,
            b"jo e:" + HASH,
            b" joe:" + HASH,
            b"joe:" + HASH + b" ",
            b"ann:" + HASH,
            b"joe:" + HASH + b"\r",
        ):
            with self.assertRaises(StoreError) as caught:
                parse(b"#\nann:" + HASH + b"\n" + line + b"\n", "/x/credentials")
            self.assertEqual(caught.exception.line, 3, line)
            self.assertTrue(str(caught.exception).startswith("/x/credentials, line 3: expected "))
            self.assertNotIn("sesame", str(caught.exception))
            self.assertNotIn(HASH.decode(), str(caught.exception))

    @given(texts, names, st.one_of(st.none(), hashes))
    def test_change(self, text: bytes, name: bytes, new: bytes | None) -> None:
        """One name changes; all other lines stay as and where they are."""
        changed = changed_text(text, name, new)
        expected = parse(text)
        expected.pop(name, None)
        if new is not None:
            expected[name] = new
        self.assertEqual(parse(changed), expected)

        def others(content: bytes) -> list[bytes]:
            return [line for line in content.split(b"\n") if line.partition(b":")[0] != name]

        self.assertEqual(others(changed), others(text))

    @given(st.binary(max_size=80))
    def test_any_text(self, text: bytes) -> None:
        try:
            found = parse(text)
        except StoreError:
            return
        for name in found:
            self.assertTrue(is_name(name))

    def test_names(self) -> None:
        for name in (b"joe", b"ann@shop.example", b"j\xc3\xb6rg", b"a" * 254):
            self.assertTrue(is_name(name))
        for name in (b"", b"a b", b"a:b", b"#a", b"a\n", b"a\0", b"a\x7f", b"a" * 255):
            self.assertFalse(is_name(name))


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = MailHome(self)
        self.store = self.home.store

    def test_life(self) -> None:
        self.assertIsNone(self.store.get(b"joe"))
        self.store.set(b"joe", HASH)
        self.store.set(b"ann", OTHER)
        self.assertEqual(self.store.get(b"joe"), HASH)
        self.store.set(b"joe", OTHER)
        self.assertEqual(self.store.entries(), {b"joe": OTHER, b"ann": OTHER})
        self.assertTrue(self.store.delete(b"joe"))
        self.assertFalse(self.store.delete(b"joe"))
        self.assertEqual(self.home.read("users/credentials"), b"ann:" + OTHER + b"\n")

    def test_summary(self) -> None:
        """What is known without reading is told, and only as long as it is true."""
        store = self.home.store
        self.assertEqual(store.known_summary(), (False, False, False))
        store.set(b"joe", b"{PLAIN}secret")
        self.assertIsNone(store.known_summary())
        self.assertEqual(store.summary(), (True, True, True))
        self.assertEqual(store.known_summary(), (True, True, True))
        keys = ScramKeys.make(b"secret", bytes(16), 4096)
        store.set(b"ann", HASH, keys)
        self.assertIsNone(store.known_summary())
        self.assertEqual(store.summary(), (True, False, True))
        os.unlink(store.path)
        self.assertIsNone(store.known_summary())
        self.assertEqual(store.summary(), (False, False, False))
        self.assertEqual(store.known_summary(), (False, False, False))

    def test_scram(self) -> None:
        """Keys stand behind the hash; a hash that is replaced keeps them, another password has others."""
        keys = ScramKeys.make(b"secret", bytes(16), 4096)
        self.store.set(b"joe", HASH, keys)
        self.store.set(b"ann", HASH)
        text = self.home.read("users/credentials")
        self.assertIn(b"\njoe:" + HASH + b" " + keys.to_bytes() + b"\nann:" + HASH + b"\n", text)
        self.assertTrue(text.startswith(b"#scram-salt-key:"))
        self.assertEqual((self.store.get(b"joe"), self.store.scram(b"joe")), (HASH, keys))
        self.assertIsNone(self.store.scram(b"ann"))
        self.assertIsNone(self.store.scram(b"nobody"))
        self.assertTrue(self.store.upgrade(b"joe", HASH, OTHER))
        self.assertEqual((self.store.get(b"joe"), self.store.scram(b"joe")), (OTHER, keys))
        key = self.store.salt_key()
        self.store.set(b"joe", HASH)
        self.assertIsNone(self.store.scram(b"joe"))
        self.store.set(b"ann", HASH, keys)
        self.assertEqual(CredentialStore(self.store.path).salt_key(), key)
        for wrong in (b" ", b" SCRAM-SHA-256$1:x", b" " + keys.to_bytes() + b" x"):
            self.assertRaises(StoreError, parse, b"joe:" + HASH + wrong)

    def test_salts_before_there_are_keys(self) -> None:
        """Made from something that nobody knows: the same in this process, another one elsewhere."""
        self.store.set(b"joe", HASH)
        key = self.store.salt_key()
        self.assertGreaterEqual(len(key), 16)
        self.assertEqual(self.store.salt_key(), key)
        self.assertNotEqual(CredentialStore(self.store.path).salt_key(), key)

    def test_secret(self) -> None:
        """0600 from the first octet on; what the administrator made of it stays."""
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.store.set(b"joe", HASH)
        path = self.store.path
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        os.chmod(path, 0o640)
        self.store.set(b"joe", OTHER)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o640)
        os.chmod(path, 0o644)
        fresh = CredentialStore(path)
        with self.assertRaises(StoreError) as caught:
            fresh.get(b"joe")
        self.assertIn("chmod", str(caught.exception))

    def test_noticed(self) -> None:
        """A change by somebody else counts at once; one that is wrong lets nobody in."""
        self.home.write("users/credentials", b"joe:" + HASH + b"\n")
        self.assertEqual(self.store.get(b"joe"), HASH)
        CredentialStore(self.store.path).set(b"joe", OTHER)
        self.assertEqual(self.store.get(b"joe"), OTHER)
        self.home.write("users/credentials", b"joe:nonsense\n")
        self.assertRaises(StoreError, self.store.get, b"joe")
        self.assertRaises(StoreError, self.store.get, b"joe")
        os.unlink(self.store.path)
        self.assertIsNone(self.store.get(b"joe"))

    def test_unreadable(self) -> None:
        os.mkdir(self.store.path)
        self.assertRaises(StoreError, self.store.get, b"joe")

    def test_wrong_file_is_not_changed(self) -> None:
        self.home.write("users/credentials", b"# mine\njoe:nonsense\n")
        for change in (
            lambda: self.store.set(b"ann", HASH),
            lambda: self.store.delete(b"ann"),
            lambda: self.store.upgrade(b"ann", HASH, OTHER),
        ):
            self.assertRaises(StoreError, change)
        self.assertEqual(self.home.read("users/credentials"), b"# mine\njoe:nonsense\n")

    def test_not_stored(self) -> None:
        for name, text in ((b"a:b", HASH), (b"Joe", HASH), (b"joe", b"x"), (b"joe", b"{PLAIN}a\nb:{PLAIN}c")):
            self.assertRaises(ValueError, self.store.set, name, text)
        self.assertFalse(os.path.exists(self.store.path))

    def test_upgrade(self) -> None:
        """Only what was there is replaced: not a password that was changed meanwhile."""
        self.store.set(b"joe", HASH)
        self.assertFalse(self.store.upgrade(b"joe", OTHER, b"{PLAIN}x"))
        self.assertEqual(self.store.get(b"joe"), HASH)
        self.assertTrue(self.store.upgrade(b"joe", HASH, OTHER))
        self.assertEqual(self.store.get(b"joe"), OTHER)
        self.assertFalse(self.store.upgrade(b"ann", HASH, OTHER))

    def test_failure_leaves_the_old_one(self) -> None:
        self.store.set(b"joe", HASH)

        def fail(*_: object) -> None:
            raise OSError(5, "Input/output error")

        self.patch(os, "rename", fail)
        self.assertRaises(OSError, self.store.set, b"joe", OTHER)
        self.assertEqual(self.store.get(b"joe"), HASH)
        self.assertEqual(sorted(os.listdir(self.home.join("users"))), ["credentials", "credentials.lock"])

    def test_order_on_disk(self) -> None:
        """The contents are synced before the name is given away, the directory after that."""
        calls: list[str] = []
        fsync, rename = os.fsync, os.rename
        self.patch(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
        self.patch(os, "rename", lambda *paths: (calls.append("rename"), rename(*paths))[1])
        self.store.set(b"joe", HASH)
        self.assertEqual(calls, ["fsync", "rename", "fsync"])

    def test_at_once(self) -> None:
        """Many who change it at one time: nobody is lost."""
        people = [b"p%d" % number for number in range(24)]
        workers = [
            threading.Thread(target=CredentialStore(self.store.path).set, args=(person, HASH)) for person in people
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(set(self.store.entries()), set(people))

    def test_no_link_is_followed(self) -> None:
        """Somebody who may write in users/ cannot have another file overwritten."""
        victim = self.home.join("victim")
        self.home.write("victim", b"precious")
        os.symlink(victim, self.store.path + ".tmp")
        self.store.set(b"joe", HASH)
        self.assertEqual(self.home.read("victim"), b"precious")
        os.unlink(self.store.path + ".lock")
        os.symlink(victim, self.store.path + ".lock")
        self.assertRaises(OSError, self.store.set, b"joe", OTHER)

    def test_bounds(self) -> None:
        self.patch(store_module, "_SIZE_LIMIT", 10)
        self.home.write("users/credentials", b"#" * 11)
        self.assertRaises(StoreError, self.store.get, b"joe")


class ReplacingTests(SynchronousTestCase):
    def test_owner_stays(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can give files away")
        path = MailHome(self).join("file")
        replacing.replace(path, b"one", 0o644)
        os.chown(path, 65534, 65534)
        replacing.replace(path, b"two", 0o600)
        status = os.stat(path)
        self.assertEqual((status.st_uid, status.st_gid, status.st_mode & 0o777), (65534, 65534, 0o644))

    def test_durable(self) -> None:
        """The contents before the name, and the name before it is said to be done."""
        path = MailHome(self).join("file")
        done = note_syncs(self, os.path.dirname(path))
        replacing.replace(path, b"one", 0o644)
        self.assertEqual(done, ["file.tmp", "rename file", "."])

    def test_lock_belongs_to_the_directory(self) -> None:
        """Root's run does not leave a lock that the owner cannot use."""
        if os.geteuid() != 0:
            self.skipTest("only root can give files away")
        home = MailHome(self)
        os.chown(home.join("users"), 65534, 65534)
        with replacing.locked(home.join("users/x")):
            pass
        self.assertEqual(os.stat(home.join("users/x.lock")).st_uid, 65534)
