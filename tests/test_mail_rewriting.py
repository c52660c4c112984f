"""Tests of qtwist.mail.rewriting and qtwist.mail.constmap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.constmap import ConstantMap, suffixes
from qtwist.mail.rewriting import LOCAL, REMOTE, Rewriter


def rewriter(*virtual: bytes) -> Rewriter:
    return Rewriter(
        envnoathost=b"mx.example.test",
        locals=ConstantMap.plain([b"mx.example.test", b"Local.Test"]),
        percenthack=ConstantMap.plain([b"pct.test", b"pct2.test"]),
        virtualdomains=ConstantMap.colon(virtual),
    )


class RouteTests(SynchronousTestCase):
    def check(self, rules: Rewriter, *expected: tuple[bytes, str, bytes]) -> None:
        for recipient, channel, address in expected:
            self.assertEqual(rules.route(recipient), (channel, address), recipient)

    def test_local_and_remote(self) -> None:
        """§9.3 steps 1, 3, 5: case is kept, the last @ decides."""
        self.check(
            rewriter(),
            (b"Joe", LOCAL, b"Joe@mx.example.test"),
            (b"", LOCAL, b"@mx.example.test"),
            (b"Joe@LOCAL.test", LOCAL, b"Joe@LOCAL.test"),
            (b"joe@sub.local.test", REMOTE, b"joe@sub.local.test"),
            (b"joe@local.test@else.test", REMOTE, b"joe@local.test@else.test"),
            (b"joe@", REMOTE, b"joe@"),
        )

    def test_percent_hack(self) -> None:
        """§9.3 step 2, §28.16: the last % becomes @, again and again while the domain is listed."""
        self.check(
            rewriter(),
            (b"user%mx.example.test@pct.test", LOCAL, b"user@mx.example.test"),
            (b"user%else.test@PCT.test", REMOTE, b"user@else.test"),
            (b"user%local.test%pct2.test@pct.test", LOCAL, b"user@local.test"),
            (b"user@pct.test", REMOTE, b"user@pct.test"),
            (b"user%x@local.test", LOCAL, b"user%x@local.test"),
            (b"%@pct.test", REMOTE, b"@"),
            (b"user%a@local.test@pct.test", LOCAL, b"user@a@local.test"),
        )

    def test_virtual_domains(self) -> None:
        """§9.3 step 4, §28.16: whole address, domain, suffixes from the left, everything."""
        rules = rewriter(
            b"user@v2.test:joe-u", b".wild.test:joe-wild", b"v.test:virt", b"not.wild.test:", b"Local.test:no"
        )
        self.check(
            rules,
            (b"user@v2.test", LOCAL, b"joe-u-user@v2.test"),
            (b"User@V2.test", LOCAL, b"joe-u-User@V2.test"),
            (b"other@v2.test", REMOTE, b"other@v2.test"),
            (b"q@sub.wild.test", LOCAL, b"joe-wild-q@sub.wild.test"),
            (b"q@a.sub.wild.test", LOCAL, b"joe-wild-q@a.sub.wild.test"),
            (b"q@wild.test", REMOTE, b"q@wild.test"),
            (b"q@not.wild.test", REMOTE, b"q@not.wild.test"),
            (b"q@v.test", LOCAL, b"virt-q@v.test"),
            (b"q@local.test", LOCAL, b"q@local.test"),
        )

    def test_catch_all(self) -> None:
        """§9.3: the empty key is the last; an empty value excepts an address or a domain."""
        rules = rewriter(b":all", b"out.test:", b"joe@in.test:")
        self.check(
            rules,
            (b"q@a.test", LOCAL, b"all-q@a.test"),
            (b"q@out.test", REMOTE, b"q@out.test"),
            (b"q@sub.out.test", LOCAL, b"all-q@sub.out.test"),
            (b"joe@in.test", REMOTE, b"joe@in.test"),
            (b"q@in.test", LOCAL, b"all-q@in.test"),
            (b"q@", LOCAL, b"all-q@"),
        )


class OriginalTests(SynchronousTestCase):
    def test_prefix_removed(self) -> None:
        """§9.10: not for user@domain entries, and only when it is there."""
        rules = rewriter(b"user@v2.test:joe-u", b".wild.test:joe-wild", b"v.test:virt", b"out.test:", b":all")
        for rewritten, expected in [
            (b"virt-q@v.test", b"q@v.test"),
            (b"joe-wild-q@sub.wild.test", b"q@sub.wild.test"),
            (b"all-q@a.test", b"q@a.test"),
            (b"virtq@v.test", b"virtq@v.test"),
            (b"q@v.test", b"q@v.test"),
            (b"all-q@out.test", b"all-q@out.test"),
            (b"virt-q", b"virt-q"),
        ]:
            self.assertEqual(rules.original(rewritten), expected)
        self.assertEqual(rewriter(b"user@v2.test:joe-u").original(b"joe-u-user@v2.test"), b"joe-u-user@v2.test")

    @given(
        st.text("ab-", max_size=5).map(str.encode),
        st.lists(st.sampled_from(["a", "v", "wild"]), min_size=1, max_size=4).map(lambda x: ".".join(x).encode()),
    )
    def test_inverse_of_route(self, box: bytes, domain: bytes) -> None:
        rules = rewriter(b".wild:w", b"a.v:x-y", b":all")
        self.assertEqual(rules.original(rules.route(box + b"@" + domain)[1]), box + b"@" + domain)


class ConstantMapTests(SynchronousTestCase):
    def test_plain(self) -> None:
        """§2.2: the whole line, ASCII case ignored."""
        lines = ConstantMap.plain([b"Example.ORG", b"a:b"])
        self.assertIn(b"example.org", lines)
        self.assertIn(b"A:B", lines)
        self.assertNotIn(b"a", lines)
        self.assertEqual(lines[b"EXAMPLE.org"], b"")
        self.assertNotIn(b"\xc4", ConstantMap.plain([b"\xe4"]))

    def test_colon(self) -> None:
        """§2.2: the later line wins, values keep case and colons, a line without colon is ignored."""
        lines = ConstantMap.colon([b"A.test:one", b"no colon", b"a.TEST:Two:3", b":all", b"b:"])
        self.assertEqual(dict(lines), {b"a.test": b"Two:3", b"": b"all", b"b": b""})
        self.assertEqual((lines.get(b"A.TEST"), lines.get(b"B"), lines.get(b"c")), (b"Two:3", b"", None))
        self.assertEqual(len(lines), 3)
        self.assertRaises(KeyError, lambda: lines[b"no colon"])


class SuffixTests(SynchronousTestCase):
    def test_order(self) -> None:
        """§2.3."""
        self.assertEqual(list(suffixes(b"a.b.c", False)), [b"a.b.c", b".b.c", b".c"])
        self.assertEqual(list(suffixes(b"a.b.c", True)), [b"a.b.c", b".b.c", b".c", b""])

    def test_odd_domains(self) -> None:
        for domain, expected in [
            (b"", [b""]),
            (b"a", [b"a", b""]),
            (b".a", [b".a", b""]),
            (b".a.b", [b".a.b", b".b", b""]),
            (b"a.", [b"a.", b".", b""]),
            (b"a..b", [b"a..b", b"..b", b".b", b""]),
        ]:
            self.assertEqual(list(suffixes(domain, True)), expected)
