"""Binary MIME made lines: what Python's own parser reads is the same before and after (RFC 2045, 2046, 3030)."""

from __future__ import annotations

from email import message_from_bytes
from email.message import Message

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.binary_mime import MAX_DEPTH, MAX_HEADER, BinaryMIME, NotConvertible

ODD = bytes(range(256)) + b"\r\n--b\n--b\r--b--\r\n.\r\n\0"


def converted(message: bytes, step: int = 0) -> bytes:
    one = BinaryMIME()
    pieces = [message[at : at + step] for at in range(0, len(message), step)] if step else [message]
    return b"".join(map(one.feed, pieces)) + one.finish()


def lines(text: str) -> bytes:
    """An indented text with CRLF line ends; ``~`` stands for ODD."""
    return b"\r\n".join(line.strip().encode() for line in text.strip().split("\n")).replace(b"~", ODD)


def leaves(message: Message) -> list[tuple[str, bytes]]:
    return [
        (part.get_content_type(), part.get_payload(decode=True))  # type: ignore[misc]
        for part in message.walk()
        if not part.is_multipart()
    ]


class Converting(SynchronousTestCase):
    def check(self, message: bytes, wanted: bytes) -> None:
        for step in (0, 1, 2, 7, 100):
            self.assertEqual(converted(message, step), wanted, step)

    def test_one_part(self) -> None:
        """What is binary to the end of the message has its line ends, too."""
        self.check(
            b"Content-Type: image/x\r\ncontent-transfer-encoding:\r\n BINARY\r\nX: y\r\n\r\nab\0\n\r",
            b"Content-Type: image/x\r\nContent-Transfer-Encoding: base64\r\nX: y\r\n\r\nYWIACg0=\r\n",
        )

    def test_parts(self) -> None:
        """Each for itself; what is not binary stays to the octet, and so does what stands around the parts."""
        message = lines(
            """
            Content-Type: multipart/mixed; boundary="b"
            Content-Transfer-Encoding: binary

            before
            --b
            Content-Type: text/plain

            --bb
            text
            --b
            Content-Type: image/x
            Content-Transfer-Encoding: binary

            ~
            --b--
            after
            """
        )
        result = converted(message)
        self.check(message, result)
        self.assertIn(b'boundary="b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\nbefore\r\n--b\r\n', result)
        self.assertIn(
            b"\r\n\r\n--bb\r\ntext\r\n--b\r\nContent-Type: image/x\r\nContent-Transfer-Encoding: base64\r\n", result
        )
        self.assertTrue(result.endswith(b"=\r\n--b--\r\nafter"), result)
        self.assertEqual(leaves(message_from_bytes(result))[1], ("image/x", ODD))

    def test_within_one_another(self) -> None:
        """A message in a message, multiparts in multiparts, of which one lacks its end."""
        message = lines(
            """
            Content-Type: multipart/mixed; boundary=outer

            --outer
            Content-Type: message/rfc822
            Content-Transfer-Encoding: binary

            Subject: inner
            Content-Type: multipart/mixed; boundary=inner

            --inner
            Content-Transfer-Encoding: binary
            Content-Type: image/x

            ~
            --outer
            Content-Type: image/y
            Content-Transfer-Encoding: binary

            --outer--
            """
        )
        result = converted(message)
        self.check(message, result)
        self.assertEqual(leaves(message_from_bytes(result)), [("image/x", ODD), ("image/y", b"")])

    def test_nothing_to_do(self) -> None:
        """Whatever is no binary part stays as it came, though it may look like one in places."""
        for message in (
            b"Subject: x\r\n\r\nbody\r\n",
            b"Subject: x\r\n\r\nContent-Transfer-Encoding: binary\r\n\r\nx",
            b"\r\nno header\r\n",
            b"Content-Transfer-Encoding: 8bit\r\n\r\n\xe4\r\n",
            b"Content-Transfer-Encoding: binaryish\r\n\r\n\0",
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n--b\r\nContent-Type: x\r\n",
        ):
            self.check(message, message)

    def test_without_a_body(self) -> None:
        self.check(b"Subject: x\r\n", b"Subject: x\r\n\r\n")
        self.check(b"Subject: x", b"Subject: x\r\n\r\n")

    def test_not_convertible(self) -> None:
        for message in (
            b"Content-Type: multipart/mixed\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n",
            b"Content-Type: multipart/mixed; boundary=" + b"b" * 71 + b"\r\n\r\nx",
            b"Content-Type: x/y\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\nx",
            b"Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: binary\r\n\r\nx",
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n--b--\r\n\r\n",
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n",
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: binary\r\n\r\nx",
            b"X: " + b"x" * MAX_HEADER,
            b"X: " + b"x" * MAX_HEADER + b"\r\n\r\n",
            b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: binary\r\n\r\n" * (MAX_DEPTH + 1),
        ):
            with self.subTest(message=message[:80]):
                self.assertRaises(NotConvertible, converted, message)

    @given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.booleans(), st.integers(0, 50))
    def test_any_content(self, contents: list[bytes], nested: bool, step: int) -> None:
        """The parts are the same to the octet, and what comes out are clean lines."""
        part = b"--=b=\r\nContent-Type: image/x\r\nContent-Transfer-Encoding: binary\r\n\r\n%b\r\n"
        message = b'Content-Type: multipart/mixed; boundary="=b="\r\n\r\n'
        message += b"".join(part % content for content in contents) + b"--=b=--"
        if nested:
            message = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: binary\r\n\r\n" + message
        result = converted(message, step)
        self.assertEqual(result, converted(message))
        self.assertEqual([payload for _, payload in leaves(message_from_bytes(result))], contents)
        left = result.replace(b"\r\n", b"")
        self.assertFalse(set(left) & set(b"\r\n\0"))
        self.assertTrue(all(len(line) <= 76 for line in result.split(b"\r\n")))

    @given(
        st.lists(
            st.sampled_from(
                (
                    b"\r\n",
                    b"--b",
                    b"--",
                    b"\r",
                    b"\n",
                    b"x",
                    b"\r\n\r\n",
                    b"\r\n--b\r\n",
                    b"Content-Transfer-Encoding: binary",
                    b"Content-Type: multipart/mixed; boundary=b",
                    b"Content-Type: message/rfc822",
                )
            )
        ).map(b"".join),
        st.integers(1, 20),
    )
    def test_anything(self, message: bytes, step: int) -> None:
        """However it comes, the outcome is the same; nothing else is raised."""

        def outcome(step: int) -> bytes | None:
            try:
                return converted(message, step)
            except NotConvertible:
                return None

        self.assertEqual(outcome(step), outcome(0))
