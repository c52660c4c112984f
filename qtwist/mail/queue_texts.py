"""What the exit codes of qmail-queue mean, as letter and text (spec/qmail.md §6.3, §7).

Light on purpose: commands that run once per mail import this and nothing that this would bring along.
"""

from __future__ import annotations

#: The code of a report in the queue's own words.
CUSTOM = 82

_TEXTS = {
    11: b"An envelope address is too long for the queue. (#5.1.3)",
    31: b"The mail server behind this one refuses the message for good. (#5.3.0)",
    51: b"The queue is out of memory. (#4.3.0)",
    52: b"The queue waited too long for the message. (#4.3.0)",
    53: b"The queue cannot write; the disk may be full. (#4.3.0)",
    54: b"The queue could not read the message or its envelope. (#4.3.0)",
    55: b"The queue cannot read its configuration. (#4.3.0)",
    56: b"The queue cannot reach the network. (#4.3.0)",
    61: b"The queue's home directory is out of reach. (#4.3.0)",
    62: b"The queue directory is out of reach. (#4.3.0)",
    63: b"The queue cannot make a file in pid. (#4.3.0)",
    64: b"The queue cannot make a file in mess. (#4.3.0)",
    65: b"The queue cannot make a file in intd. (#4.3.0)",
    66: b"The queue cannot make a file in todo. (#4.3.0)",
    71: b"The mail server behind this one refuses the message for now. (#4.3.0)",
    72: b"The connection to the mail server behind this one timed out. (#4.4.1)",
    73: b"The mail server behind this one refused the connection. (#4.4.1)",
    74: b"The talk with the mail server behind this one broke off. (#4.4.2)",
    81: b"The queue has found an error in itself. (#4.3.0)",
    91: b"The queue did not understand the envelope. (#4.3.0)",
    111: b"The queue's accounts could not be found. (#4.3.0)",
    120: b"The queue program could not be started. (#4.3.0)",
}
_TEXTS[115] = _TEXTS[11]  # an old alias


def report(code: int, custom: bytes = b"") -> tuple[bytes, bytes]:
    """What became of a message that was handed to the queue: ``K``, ``Z`` or ``D``, and a text for people.

    `code` is the exit code; `custom` is what a queue program wrote for code 82 (letter and text); it counts from three
    bytes on. A failure is permanent only if its letter is D; a code that nobody knows is permanent from 11 to 40 and
    temporary otherwise.
    """
    if code == 0:
        return b"K", b""
    if code == CUSTOM and len(custom) > 2:
        return (b"D" if custom[:1] == b"D" else b"Z"), custom[1:]
    permanent = 11 <= code <= 40 or code == 115
    text = _TEXTS.get(code)
    if text is None:
        text = b"The queue refuses the message. (#5.3.0)" if permanent else b"The queue is in trouble. (#4.3.0)"
    return (b"D" if permanent else b"Z"), text
