"""Tests of qtwist.control and qtwist.control_checks."""

from __future__ import annotations

import os
import socket

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.control import CONTROL_FILES, ROLES, Control, ControlError, Listener
from qtwist.files.cdb import write_cdb

TEXTS = st.lists(st.sampled_from([b"\n", b" ", b"\t", b"\r", b"#", b"a", b"7", b":", b"\0", b"\xff"])).map(b"".join)

# §3, and the files that qtwist adds: kind, default without me, default from me.
TABLE = {
    "me": ("line", None, False),
    "accounts": ("colon list", None, False),
    "authmechanisms": ("list", None, False),
    "authsenders": ("colon list", None, False),
    "authsenderstls": ("int", 2, False),
    "badmailfrom": ("list", None, False),
    "bouncefrom": ("line", b"MAILER-DAEMON", False),
    "bouncehost": ("line", b"bouncehost", True),
    "clientca.pem": ("pem", None, False),
    "clientcrl.pem": ("pem", None, False),
    "concurrencylocal": ("int", 10, False),
    "concurrencyremote": ("int", 20, False),
    "confine": ("int", 1, False),
    "dane": ("int", 0, False),
    "databytes": ("int", 0, False),
    "defaultdomain": ("line", b"defaultdomain", True),
    "defaulthost": ("line", b"defaulthost", True),
    "delaywarn": ("int", 14400, False),
    "doublebouncehost": ("line", b"doublebouncehost", True),
    "doublebounceto": ("line", b"postmaster", False),
    "dsnbounces": ("int", 0, False),
    "ehlodiscard": ("list", None, False),
    "envnoathost": ("line", b"envnoathost", True),
    "helohost": ("line", None, True),
    "idhost": ("line", b"idhost", True),
    "localiphost": ("line", None, True),
    "locals": ("list", None, True),
    "milters": ("list", None, False),
    "morercpthosts": ("list", None, False),
    "morercpthosts.cdb": ("cdb", None, False),
    "percenthack": ("list", None, False),
    "plusdomain": ("line", b"plusdomain", True),
    "autoturn": ("colon list", None, False),
    "etrnclients": ("colon list", None, False),
    "xclients": ("list", None, False),
    "proxyclients": ("list", None, False),
    "qmailqueue": ("line", None, False),
    "qmqpclients": ("list", None, False),
    "qmqpservers": ("list", None, False),
    "qmtproutes": ("colon list", None, False),
    "queuelifetime": ("int", 604800, False),
    "rcpthosts": ("list", None, False),
    "rspamd": ("list", None, False),
    "smtpauth": ("int", 1, False),
    "forceauthmailfrom": ("int", 1, False),
    "ofmipname.cdb": ("cdb", None, False),
    "relaylimits": ("colon list", None, False),
    "submissionpolicies": ("list", None, False),
    "submissionsenders": ("colon list", None, False),
    "smtpdworkers": ("int", 0, False),
    "smtpgreeting": ("line", None, True),
    "smtproutes": ("colon list", None, False),
    "timeoutconnect": ("int", 60, False),
    "timeoutqmtpd": ("int", 3600, False),
    "timeoutremote": ("int", 1200, False),
    "remoterecipients": ("int", 50, False),
    "timeoutsmtpd": ("int", 1200, False),
    "virtualdomains": ("colon list", None, False),
    "badhelo": ("list", None, False),
    "badmailto": ("list", None, False),
    "badrcptto": ("list", None, False),
    "brtlimit": ("int", 0, False),
    "dnsbllist": ("list", None, False),
    "dnsbltimeout": ("int", 10, False),
    "greetdelay": ("int", 0, False),
    "greylistexempt": ("list", None, False),
    "greylisting": ("list", None, False),
    "helocheck": ("int", 0, False),
    "memoryminfree": ("int", 16777216, False),
    "mfcheck": ("int", 0, False),
    "rcptcheck": ("int", 0, False),
    "tarpitcount": ("int", 0, False),
    "queueminfree": ("int", 16777216, False),
    "tarpitdelay": ("int", 5, False),
    "connratec": ("int", 0, False),
    "connrateip": ("int", 0, False),
    "maxconnc": ("int", 100, False),
    "maxconnip": ("int", 50, False),
    "tcp.pop3": ("list", None, False),
    "tcp.pop3.cdb": ("cdb", None, False),
    "tcp.qmqp": ("list", None, False),
    "tcp.qmqp.cdb": ("cdb", None, False),
    "tcp.qmtp": ("list", None, False),
    "tcp.qmtp.cdb": ("cdb", None, False),
    "tcp.smtp": ("list", None, False),
    "tcp.smtp.cdb": ("cdb", None, False),
    "tcp.submission": ("list", None, False),
    "tcp.submission.cdb": ("cdb", None, False),
    "tcpremotehost": ("int", 0, False),
    "tcpremoteinfo": ("int", 0, False),
    "trace": ("list", None, False),
    "checkpassword": ("line", None, False),
    "clamd": ("list", None, False),
    "concurrencyincoming": ("int", 400, False),
    "defaultdelivery": ("text", b"./Maildir/", False),
    "dnsservers": ("list", None, False),
    "holds": ("list", None, False),
    "journal": ("int", 1, False),
    "listen": ("list", None, False),
    "maxrecipients": ("int", 10000, False),
    "policies": ("list", None, False),
    "relayclients": ("list", None, False),
    "concurrencypop3": ("int", 400, False),
    "plaintextauth": ("int", 0, False),
    "systemaccounts": ("int", 0, False),
    "timeoutpop3d": ("int", 1200, False),
    "timeoutlocal": ("int", 3600, False),
    "softlimit": ("colon list", None, False),
    "servercert.pem": ("pem", None, False),
    "tlsclients": ("list", None, False),
    "clientcert.pem": ("pem", None, False),
    "tlsclientciphers": ("line", None, False),
    "mtasts": ("int", 0, False),
    "tlsmemory": ("int", 86400, False),
    "tlsserverciphers": ("line", None, False),
}


class ControlTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.control = Control(self.directory)

    def write(self, name: str, text: bytes) -> None:
        with open(os.path.join(self.directory, name), "wb") as file:
            file.write(text)
        os.chmod(os.path.join(self.directory, name), 0o600 if b"|" in text else 0o644)

    def remove(self, name: str) -> None:
        os.unlink(os.path.join(self.directory, name))


class SoftlimitTests(ControlTestCase):
    def test_lines(self) -> None:
        """A role and a bound that it can live with, or none."""
        self.write("me", b"mx.test\n")
        self.write("softlimit", b"smtpd:64000000\nrspawn:0\nsend:4000000000\n")
        self.assertEqual(self.control.check(), [])
        for line in (b"smtpd", b"smtpd:", b"smtpd:10M", b"smtpd:63999999", b"smtp:64000000", b"smtpd:-1", b"smtpd:01"):
            self.write("softlimit", line + b"\n")
            [error] = self.control.check()
            self.assertIn("or 0 for no limit", str(error), line)


class TableTests(ControlTestCase):
    def test_table(self) -> None:
        """§3: every file with its kind and defaults; and a help line and a moment of reading for each."""
        table = {entry.name: (entry.kind, entry.default, entry.me) for entry in CONTROL_FILES.values()}
        self.assertEqual(table, TABLE)
        moments = {"start", "HUP", "connection", "delivery", "run", "manual"}
        for entry in CONTROL_FILES.values():
            self.assertTrue(entry.help and "\n" not in entry.help and len(entry.help) <= 80, entry.name)
            self.assertTrue(entry.readers, entry.name)
            self.assertIn(entry.reread, moments, entry.name)
        reread = {entry.name for entry in CONTROL_FILES.values() if entry.reread == "HUP"}
        self.assertEqual(reread, {"holds", "locals", "virtualdomains"})

    def test_defaults(self) -> None:
        """§2.1: without any file, and with `me` alone."""
        for me in (None, b"mx.test"):
            if me:
                self.write("me", me + b"\n")
            for name, (kind, default, from_me) in TABLE.items():
                value = me if me and (from_me or name == "me") else default
                if kind == "line":
                    self.assertEqual(self.control.line(name), value, name)
                elif kind == "int":
                    self.assertEqual(self.control.integer(name), value, name)
                elif kind == "text":
                    self.assertEqual(self.control.text(name), value, name)
                elif kind not in ("cdb", "pem"):
                    self.assertEqual(self.control.list(name), None if value is None else [value], name)

    def test_wrong_use(self) -> None:
        self.assertRaises(KeyError, self.control.line, "nosuchfile")
        self.assertRaises(KeyError, self.control.stamp, "nosuchfile")
        self.assertRaises(TypeError, self.control.line, "rcpthosts")
        self.assertRaises(TypeError, self.control.list, "me")
        self.assertRaises(TypeError, self.control.integer, "me")
        self.assertRaises(TypeError, self.control.text, "me")


class ReaderTests(ControlTestCase):
    def test_line(self) -> None:
        """§2.1: the first line, trailing SP TAB LF removed, nothing else."""
        for text, expected in [
            (b"mx.test\nsecond\n", b"mx.test"),
            (b"mx.test", b"mx.test"),
            (b" mx.test \t \n", b" mx.test"),
            (b"mx.test\r\n", b"mx.test\r"),
            (b"# mx\n", b"# mx"),
            (b"\nmx.test\n", b""),
            (b"", b""),
        ]:
            self.write("helohost", text)
            self.assertEqual(self.control.line("helohost"), expected, text)

    def test_present_but_empty(self) -> None:
        """§2.1: an empty file is a value, so no default is used."""
        self.write("me", b"mx.test\n")
        for name in ("bouncefrom", "bouncehost", "locals", "rcpthosts", "defaultdelivery", "concurrencylocal"):
            self.write(name, b"")
        self.assertEqual(self.control.line("bouncefrom"), b"")
        self.assertEqual(self.control.line("bouncehost"), b"")
        self.assertEqual(self.control.list("locals"), [])
        self.assertEqual(self.control.list("rcpthosts"), [])
        self.assertEqual(self.control.text("defaultdelivery"), b"")
        self.assertEqual(self.control.integer("concurrencylocal"), 10)
        self.write("me", b"")
        self.assertEqual(self.control.line("helohost"), b"")

    def test_integer(self) -> None:
        """§2.1: leading digits; without any the default, also for a sign or a blank in front."""
        for text, expected in [
            (b"7\n", 7),
            (b"0", 0),
            (b"007", 7),
            (b"12 twelve\n", 12),
            (b"10M\n", 10),
            (b"\n7\n", 20),
            (b"-7\n", 20),
            (b" 7\n", 20),
            (b"many\n", 20),
            (b"9" * 5000, 10**18),
        ]:
            self.write("concurrencyremote", text)
            self.assertEqual(self.control.integer("concurrencyremote"), expected, text[:20])

    def test_list(self) -> None:
        """§2.1: trailing blanks removed, empty lines and comments dropped."""
        self.write("rcpthosts", b"a.test \t\n\n  \n#b.test\n #c.test\n.d.test\r\nlast")
        self.assertEqual(self.control.list("rcpthosts"), [b"a.test", b" #c.test", b".d.test\r", b"last"])
        self.assertEqual(
            self.control.numbered("rcpthosts"), [(1, b"a.test"), (5, b" #c.test"), (6, b".d.test\r"), (7, b"last")]
        )

    def test_map(self) -> None:
        """§2.2: the later line wins; plain or with a colon as the table says."""
        self.assertIsNone(self.control.map("virtualdomains"))
        self.write("virtualdomains", b"a.test:one\nA.TEST:two\nnothing\n:all\n")
        self.assertEqual(dict(self.control.map("virtualdomains") or {}), {b"a.test": b"two", b"": b"all"})
        self.write("rcpthosts", b"A.test\n")
        self.assertEqual(dict(self.control.map("rcpthosts") or {}), {b"a.test": b""})

    def test_text(self) -> None:
        text = b"|preline procmail\n\n./Maildir/ \n"
        self.write("defaultdelivery", text)
        self.assertEqual(self.control.text("defaultdelivery"), text)

    def test_read_anew(self) -> None:
        self.write("me", b"one\n")
        self.assertEqual(self.control.line("me"), b"one")
        self.write("me", b"two\n")
        self.assertEqual(self.control.line("helohost"), b"two")
        self.remove("me")
        self.assertIsNone(self.control.line("me"))

    def test_listeners(self) -> None:
        self.assertEqual(self.control.listeners(), [])
        self.write("listen", b"# where\nsmtp tcp:25\npop3\ttcp:110:interface=127.0.0.1\n")
        expected = [Listener("smtp", "tcp:25", 2), Listener("pop3", "tcp:110:interface=127.0.0.1", 3)]
        self.assertEqual(self.control.listeners(), expected)
        self.write("listen", b"smtp tcp:25\nimap tcp:143\n")
        error = self.assertRaises(ControlError, self.control.listeners)
        self.assertEqual((error.path, error.line), (self.control.path("listen"), 2))

    @given(TEXTS)
    def test_any_text(self, text: bytes) -> None:
        """Whatever is in a file, it is read, and the check ends with a list of one-line errors."""
        for name in ("me", "rcpthosts", "smtproutes", "listen", "databytes", "defaultdelivery"):
            self.write(name, text)
        self.assertFalse((self.control.line("me") or b"").endswith((b" ", b"\t", b"\n")))
        for line in self.control.list("rcpthosts") or ():
            self.assertTrue(line and not line.startswith(b"#") and b"\n" not in line and line.rstrip(b" \t") == line)
        self.assertEqual(
            self.control.integer("databytes"),
            0 if text[:1] != b"7" else int(text[: len(text) - len(text.lstrip(b"7"))]),
        )
        self.assertEqual(self.control.text("defaultdelivery"), text)
        for error in self.control.check():
            self.assertNotIn("\n", str(error))
            self.assertTrue(str(error).isprintable(), str(error))


class StampTests(ControlTestCase):
    def test_stamp(self) -> None:
        self.assertIsNone(self.control.stamp("rcpthosts"))
        self.write("rcpthosts", b"a.test\n")
        first = self.control.stamp("rcpthosts")
        self.assertEqual(first, self.control.stamp("rcpthosts"))
        status = os.stat(self.control.path("rcpthosts"))
        self.assertEqual(first, (status.st_mtime_ns, 7, status.st_ino))
        os.utime(self.control.path("rcpthosts"), ns=(0, status.st_mtime_ns + 1))
        self.assertNotEqual(first, self.control.stamp("rcpthosts"))

    def test_stand_in(self) -> None:
        """`me` counts where it is the value."""
        self.write("me", b"mx.test\n")
        self.assertEqual(self.control.stamp("helohost"), self.control.stamp("me"))
        self.assertIsNone(self.control.stamp("rcpthosts"))

    def test_trouble(self) -> None:
        self.assertRaises(ControlError, Control(__file__).stamp, "rcpthosts")


class CheckTests(ControlTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.write("me", b"mx.test\n")

    def one(self) -> ControlError:
        (error,) = self.control.check()
        return error

    def test_good(self) -> None:
        """Everything that notqmail's own manuals and ours show."""
        self.assertEqual(self.control.check(), [])
        good = {
            "badmailfrom": b"joe@x.test\n@y.test\n",
            "concurrencylocal": b"10\n",
            "concurrencyremote": b"0 on hold\n",
            "databytes": b"0\n",
            "queuelifetime": b"",
            "defaultdelivery": b"|preline procmail\n./Maildir/\n",
            "dnsservers": b"192.0.2.1\n192.0.2.1:5353\n2001:db8::1\n[2001:db8::1]:53\n[2001:db8::1]\n",
            "listen": b"".join(role.encode() + b" tcp:25:interface=\\:\\:1\n" for role in ROLES)
            + b"smtp  systemd:domain=INET:index=0\n",
            "locals": b"",
            "policies": b"quiet.Quiet\n# off\npackage.module.Class_2\n",
            "rcpthosts": b"x.test\n.x.test\nm\xc3\xbcnchen.test\n",
            "relayclients": b"127.0.0.1\n::1\n192.0.2.0/24\n2001:db8::/32\n192.0.2.1/24\n",
            "smtpgreeting": b"mx.test ESMTP here\n",
            "smtproutes": b"x.test:relay.test\n.x.test:relay:26\na.test:[192.0.2.1]:26\nb.test:192.0.2.1\n"
            b"c.test:[2001:db8::1]:25\nd.test:\n:all.test\ne.test::26\nf.test:[IPv6:2001:db8::1]:25\n",
            "virtualdomains": b"x.test:joe\njoe@y.test:joe-y\n.z.test:joe-z\nw.test:\n:all\n",
            "percenthack": b"pct.test\n",
            "qmqpservers": b"192.0.2.1\n",
        }
        for name, text in good.items():
            self.write(name, text)
        write_cdb(self.control.path("morercpthosts.cdb"), [(b"z.test", b"")])
        self.assertEqual([str(error) for error in self.control.check()], [])

    def test_wrong_values(self) -> None:
        """Each of these lines is found, with its number, and the line before it is not."""
        for name, good, bad in [
            ("me", None, b""),
            ("me", None, b"mx test"),
            ("me", None, b"joe@mx.test"),
            ("bouncefrom", None, b""),
            ("smtpgreeting", None, b"mx\x07"),
            ("smtpgreeting", None, b"mx\r"),
            ("smtpgreeting", None, b""),
            ("concurrencylocal", None, b"many"),
            ("concurrencylocal", None, b"-1"),
            ("databytes", None, b"10M"),
            ("databytes", None, b"1.5"),
            ("databytes", None, b"1" * 19),
            ("concurrencyincoming", None, b"0"),
            ("timeoutlocal", None, b"0"),
            ("maxrecipients", None, b"0"),
            ("listen", b"smtp tcp:25", b"imap tcp:143"),
            ("listen", b"smtp tcp:25", b"smtp"),
            ("listen", b"smtp tcp:25", b"smtp 25"),
            ("listen", b"smtp tcp:25", b"SMTP tcp:25"),
            ("listen", b"smtp tcp:25", b"smtp \xff:25"),
            ("listen", b"smtp tcp:25", b"\x0b"),
            ("policies", b"a.B", b"Quiet"),
            ("policies", b"a.B", b"a/b.py"),
            ("policies", b"a.B", b"a..B"),
            ("policies", b"a.B", b"a.\xff"),
            ("relayclients", b"10.0.0.1", b"10.0.0.256"),
            ("checkpassword", None, b"checkpassword"),
            ("relayclients", b"10.0.0.1", b"10.0.0.0/33"),
            ("relayclients", b"10.0.0.1", b"host.test"),
            ("relayclients", b"10.0.0.1", b"10."),
            ("qmqpclients", b"10.0.0.0/8", b"10."),
            ("relayclients", b"10.0.0.1", b"10.0.0.1 # mine"),
            ("smtproutes", b"x:y:25", b"x"),
            ("smtproutes", b"x:y:25", b"x:y:smtp"),
            ("smtproutes", b"x:y:25", b"x:y:"),
            ("smtproutes", b"x:y:25", b"x:y:0"),
            ("smtproutes", b"x:y:25", b"x:y:65536"),
            ("smtproutes", b"x:y:25", b"x:y z"),
            ("smtproutes", b"x:y:25", b"x y:z"),
            ("smtproutes", b"x:y:25", b"x:2001:db8::1"),
            ("smtproutes", b"x:y:25", b"x:[2001:db8::1"),
            ("smtproutes", b"x:y:25", b"x:[y]"),
            ("smtproutes", b"x:y:25", b"x:[192.0.2.1]25"),
            ("virtualdomains", b"x:joe", b"x"),
            ("virtualdomains", b"x:joe", b"x y:joe"),
            ("locals", b"x.test", b"joe@x.test"),
            ("rcpthosts", b"x.test", b"x.test # ours"),
            ("rcpthosts", b"x.test", b"y.test\r"),
            ("rcpthosts", b"x.test", b"y.test\0"),
            ("relaylimits", b"ann@x.test:100/3600,500", b"ann:many"),
            ("submissionpolicies", b"a.b.C", b"C"),
            ("submissionsenders", b"ann:@x.test", b"ann@x.test"),
            ("submissionsenders", b"*:*", b"ann:bob"),
            ("authsenders", b"ann@x.test:relay.test:587|ann|se:c|ret", b"ann@x.test:relay.test|ann"),
            ("authsenders", b":[::1]:587|ann|secret", b"ann@x.test:|ann|secret"),
            ("authsenders", b"!@:relay.test", b"a b:relay.test"),
            ("smtproutes", b"x.test:relay.test;587|ann|secret", b"x.test:relay.test|ann|"),
            ("authmechanisms", b"plain", b"DIGEST-MD5"),
            ("etrnclients", b"example.org:2001:db8::/32", b"example.org"),
            ("autoturn", b"example.org:192.0.2.7", b"@example.org:192.0.2.7"),
            ("proxyclients", b"192.0.2.1 10025 10110", b"192.0.2.1:10025"),
            ("proxyclients", b"2001:db8::/32", b"192.0.2.1 0"),
            ("ehlodiscard", b"chunking", b"LIMITS RCPTMAX"),
            ("badmailfrom", b"@x.test", b"@x.test # spam"),
            ("dnsservers", b"10.0.0.1", b"ns.test"),
            ("dnsservers", b"10.0.0.1", b"10.0.0.1:0"),
            ("dnsservers", b"10.0.0.1", b"[::1"),
            ("dnsservers", b"10.0.0.1", b"[::1]53"),
            ("qmqpservers", b"10.0.0.1", b"mx.test"),
            ("qmqpservers", b"10.0.0.1:6280", b"10.0.0.1:0"),
            ("qmqpservers", b"[2001:db8::1]:628", b"2001:db8::1:"),
        ]:
            self.write(name, bad if good is None else b"# comment\n\n" + good + b"\n" + bad + b"\n" + good + b"\n")
            error = self.one()
            self.assertEqual((error.path, error.line), (self.control.path(name), 1 if good is None else 4), bad)
            self.assertTrue(error.expected and "\n" not in str(error), bad)
            if name == "me":
                self.write(name, b"mx.test\n")
            else:
                self.remove(name)

    def test_ensure(self) -> None:
        """What is reread must be right as a whole; other files do not matter to it."""
        self.write("locals", b"x.test\n")
        self.write("rcpthosts", b"a b\n")
        self.control.ensure("locals", "virtualdomains")
        self.write("virtualdomains", b"x.test:joe\ny.test\n")
        error = self.assertRaises(ControlError, self.control.ensure, "locals", "virtualdomains")
        self.assertEqual((error.path, error.line), (self.control.path("virtualdomains"), 2))

    def test_secrets(self) -> None:
        """spec/related.md §14.3: a password is for nobody else to read, and in no error."""
        for name, line in (("smtproutes", b"x.test:relay.test|ann|geheim"), ("authsenders", b":relay.test|ann|geheim")):
            self.write(name, line + b"\n")
            self.assertEqual(self.control.check(), [])
            self.control.ensure_secret(name)
            os.chmod(self.control.path(name), 0o604)
            self.assertIn("chmod o-rwx", str(self.one()))
            self.assertRaises(ControlError, self.control.ensure_secret, name)
            self.write(name, line.replace(b"relay.test", b"relay.test:x") + b"\n")
            self.assertNotIn("geheim", str(self.one()))
            self.remove(name)
        self.write("smtproutes", b"x.test:relay.test\n")
        self.control.ensure_secret("smtproutes", "authsenders")

    def test_whole_text(self) -> None:
        for text in (b"", b" \n", b"./Maildir/\r\n", b"./Mail\0dir/\n"):
            self.write("defaultdelivery", text)
            self.assertIsNone(self.one().line, text)

    def test_one_clear_line(self) -> None:
        self.write("concurrencylocal", b"many\n")
        self.assertEqual(str(self.one()), f"{self.directory}/concurrencylocal, line 1: found 'many', expected a number")

    def test_address_without_brackets(self) -> None:
        self.write("smtproutes", b"x:2001:db8::1\n")
        self.assertIn("in brackets", str(self.one()))

    def test_long_and_odd_values(self) -> None:
        self.write("relayclients", b"\x1b[31m\xff" + b"x" * 500)
        text = str(self.one())
        self.assertTrue(text.isprintable() and len(text) < 300, text)

    def test_all_errors(self) -> None:
        """In the order of the table."""
        self.write("rcpthosts", b"a b\nc d\n")
        self.write("databytes", b"x")
        found = [(os.path.basename(error.path), error.line) for error in self.control.check()]
        self.assertEqual(found, [("databytes", 1), ("rcpthosts", 1), ("rcpthosts", 2)])

    def test_no_regular_file(self) -> None:
        os.mkdir(self.control.path("rcpthosts"))
        self.assertEqual(self.one().got, "a directory")
        self.assertRaises(ControlError, self.control.list, "rcpthosts")
        os.rmdir(self.control.path("rcpthosts"))
        os.mkfifo(self.control.path("rcpthosts"))
        self.assertEqual(self.one().got, "a special file")
        self.remove("rcpthosts")
        os.symlink("/dev/null", self.control.path("rcpthosts"))
        self.assertEqual(self.control.list("rcpthosts"), [])

    def test_unreadable(self) -> None:
        """A socket, which not even root can open, a dangling path, and one that is too much."""
        short = os.open(self.directory, os.O_RDONLY)  # the names of sockets are bounded
        self.addCleanup(os.close, short)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{short}/rcpthosts")
        error = self.one()
        self.assertEqual((error.line, error.expected), (None, "a readable file"))
        self.remove("rcpthosts")
        os.symlink("rcpthosts", self.control.path("rcpthosts"))
        self.assertRaises(ControlError, self.control.map, "rcpthosts")
        self.remove("rcpthosts")
        os.symlink("/dev/zero", self.control.path("rcpthosts"))
        self.assertRaises(ControlError, self.control.list, "rcpthosts")

    def test_damaged_cdb(self) -> None:
        self.write("morercpthosts.cdb", b"no cdb")
        error = self.one()
        self.assertEqual(
            (error.got, error.expected),
            ("no proper cdb: shorter than its header", "a constant database, as qmail-newmrh and tcprules write"),
        )

    def test_no_name(self) -> None:
        """§3: locals, smtpgreeting and helohost need `me` or a file of their own."""
        self.remove("me")
        self.assertEqual(self.one().path, self.control.path("me"))
        self.write("locals", b"")
        self.write("helohost", b"mx.test\n")
        self.assertIn("control/smtpgreeting is missing too", str(self.one()))
        self.write("smtpgreeting", b"mx.test\n")
        self.assertEqual(self.control.check(), [])

    def test_no_directory(self) -> None:
        for path, got in ((self.directory + "/none", "nothing"), (self.control.path("me"), "something else")):
            (error,) = Control(path).check()
            self.assertEqual((error.path, error.got, error.expected), (path, got, "a directory with control files"))
