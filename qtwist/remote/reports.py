"""What a remote delivery reports: the letters and texts that qmail-rspawn makes of qmail-remote's (spec/qmail.md §11.4,
§15.3, §15.4).

The forms that logs and bounces have always had are kept; a bounce of many lines says the same as qmail's.
"""

from __future__ import annotations

from qtwist.mail.envelope import Report
from qtwist.remote.qmtp import Outcome
from qtwist.tls.clients import Secured
from qtwist.wire.smtp_client import Broken, Finished, NoLogin, RecipientResult, Refused, Reply, Stage

NO_RESOURCES = Report.deferral(b"Something went wrong here, see the log of the mail system. (#4.3.0)\n")
STOPPING = Report.deferral(b"The mail system is stopping. (#4.3.0)\n")
BUSY = Report.deferral(b"Too many deliveries at once. (#4.3.5)\n")
UNREADABLE = Report.deferral(b"The message cannot be read from the queue. (#4.3.0)\n")
NO_HOST_PART = Report.failure(b"A remote address must have a host name. (#5.1.3)\n")
BAD_RECIPIENT = Report.failure(b"This address cannot be written in SMTP. (#5.1.3)\n")
BAD_SENDER = Report.failure(b"The sender's address cannot be written in SMTP. (#5.1.7)\n")
DNS_TROUBLE = Report.deferral(b"The DNS gave no answer for that host for now. (#4.1.2)\n")
NO_EXCHANGER = Report.failure(b"That host has neither a mail exchanger nor an address. (#5.4.4)\n")
NO_CONNECTION = Report.deferral(b"No SMTP connection could be established. (#4.4.1)\n")
LOOP = Report.failure(
    b"This host is itself the best mail exchanger for that host, or has its address,\n"
    b"but the name is not in control/locals, so the mail is not taken as local. (#5.4.6)\n"
)


def visible(text: bytes) -> bytes:
    """`text` with every byte that is not printable ASCII as ``?``."""
    return bytes(byte if 32 < byte < 127 else 63 for byte in text)


def no_such_host(host: bytes) -> Report:
    """The DNS says that the name does not exist."""
    return Report.failure(b"There is no host named %b. (#5.1.2)\n" % visible(host))


def no_mail_host(host: bytes) -> Report:
    """The host says that it takes no mail: null MX (RFC 7505)."""
    return Report.failure(b"%b says that it takes no mail (null MX). (#5.1.10)\n" % visible(host))


def unusable_route(host: bytes, file: bytes = b"smtproutes") -> Report:
    """The line of control/smtproutes, or another `file`, makes no sense."""
    return Report.deferral(b"The line for %b in control/%b is wrong. (#4.3.5)\n" % (visible(host), file))


def too_large(address: str, limit: int) -> Report:
    """The server told before that it would not take this many octets (RFC 1870 §6.1 (3): as a 552 reply)."""
    ip = address.encode()
    return Report.failure(
        b"Connected to %b but the message is larger than the %d octets that it accepts. (#5.3.4)\n" % (ip, limit)
    )


def lacking(address: str, extension: bytes) -> Report:
    """The server does not know an extension that the message cannot do without: REQUIRETLS (RFC 8689 §4.2.1), or
    SMTPUTF8 (RFC 6531 §3.6)."""
    why = _LACKING[extension]
    return Report.failure(b"Connected to %b but it does not offer %b, %b\n" % (address.encode(), extension, why))


_LACKING = {
    b"REQUIRETLS": b"which the sender demands. (#5.7.30)",
    b"SMTPUTF8": b"which addresses or header of this message need. (#5.6.7)",
}


def unsafe_exchangers(domain: bytes) -> Report:
    """The message demands REQUIRETLS, and who may take it is not known for sure (RFC 8689 §4.2.1)."""
    return Report.failure(
        b"The sender demands TLS all the way, but neither DNSSEC nor MTA-STS vouches for the mail exchangers of %b."
        b" (#5.7.30)\n" % visible(domain)
    )


def refused(address: str, event: Refused) -> Report:
    """The session was refused at the greeting or at HELO."""
    what = {Stage.GREETING: b"greeting failed", Stage.STARTTLS: b"it is leaving"}.get(
        event.stage, b"my name was rejected"
    )
    return Report.deferral(b"Connected to %b but %b.\n%b" % (address.encode(), what, _said(event.reply)))


def no_tls(address: str, why: str, because: str) -> Report:
    """TLS was demanded by `because`, and there was none, or not as demanded."""
    text = f"Connected to {address} but TLS failed: {why}. It is demanded by {because}. (#4.7.5)\n"
    return Report.deferral(text.encode("utf-8", "replace"))


def no_tlsa(name: bytes) -> Report:
    """The DNS does not say what certificate a host must have, and its names are signed (RFC 7672 §2.1.2)."""
    return Report.deferral(
        b"The DNS gave no answer for now about TLSA records of %b, whose name is signed. (#4.7.5)\n" % visible(name)
    )


def no_matching_exchanger(domain: bytes) -> Report:
    """The mail exchangers that the DNS tells of are not those of the domain's MTA-STS policy (RFC 8461 §4.1)."""
    return Report.deferral(
        b"The DNS names no mail exchanger of %b that its MTA-STS policy knows. (#4.7.5)\n" % visible(domain)
    )


def no_login(address: str, event: NoLogin) -> Report:
    """The relay did not take our login, or we did not give it. That is ours to mend, so that the mail waits for it."""
    said = b"" if event.reply is None else _said(event.reply)
    return Report.deferral(b"Connected to %b but %b. (#4.7.8)\n%b" % (address.encode(), event.why.encode(), said))


def broken(address: str, event: Broken, seconds: int | None = None) -> Report:
    """The connection died, in `seconds` without an answer if not None, or the server talked nonsense."""
    ip = address.encode()
    note = b" The message may arrive all the same: possible duplicate." if event.dot_sent else b""
    if event.nonsense is not None:
        line = event.nonsense[:200].replace(b"\0", b"?").replace(b"\r", b"?")
        return Report.deferral(
            b"Connected to %b but its reply to %b makes no sense.%b (#4.5.0)\nRemote host said: %b\n"
            % (ip, event.stage.value.encode(), note, line)
        )
    why = b"" if seconds is None else b" (no answer to %b in %d seconds)" % (event.stage.value.encode(), seconds)
    return Report.deferral(b"Connected to %b but connection died%b.%b (#4.4.2)\n" % (ip, why, note))


def finished(
    address: str, recipient: RecipientResult | None, event: Finished, secured: Secured | None = None
) -> Report:
    """The result for one recipient of a finished transaction. `recipient` is None where MAIL was refused. A message
    that was taken over TLS, `secured`, gets a line more than in qmail."""
    ip = address.encode()
    if recipient is not None and not recipient.reply.positive:
        text = b"%b does not like recipient.\n%bGiving up on %b.\n" % (ip, _said(recipient.reply), ip)
        return Report(_letter(recipient.reply), text)
    if event.stage is Stage.MAIL:
        text = b"Connected to %b but sender was rejected.\n" % ip
    elif event.stage is Stage.MESSAGE:
        text = ip + (b" accepted message.\n" if event.reply.positive else b" failed after I sent the message.\n")
    else:
        text = b"%b failed on DATA command.\n" % ip
    text += _said(event.reply)
    if secured is not None and event.stage is Stage.MESSAGE and event.reply.positive:
        verified = "certificate verified by DANE" if secured.by_dane else "certificate verified"
        good = verified if secured.problem is None else f"not verified: {secured.problem}"
        text += f"{secured.version} {secured.cipher}, {good}.\n".encode("utf-8", "replace")
    return Report(_letter(event.reply), text)


def qmtp(address: str, outcome: Outcome) -> Report:
    """The result of a QMTP package for one recipient."""
    ip = address.encode()
    if outcome.unreadable:
        return UNREADABLE
    note = b" The message may arrive all the same: possible duplicate." if outcome.whole else b""
    if outcome.answer is not None:
        letter, text = outcome.answer
        said = b"Remote host said: %b\n" % text[:2000].replace(b"\0", b"?").replace(b"\r", b"?").rstrip(b"\n")
        if letter == b"K":
            return Report.success(b"%b accepted message.\n%b" % (ip, said))
        return Report(letter, b"%b does not like recipient.\n%bGiving up on %b.\n" % (ip, said, ip))
    if outcome.nonsense is not None:
        line = outcome.nonsense.replace(b"\0", b"?").replace(b"\r", b"?")
        return Report.deferral(
            b"Connected to %b but its QMTP answer makes no sense.%b (#4.5.0)\nRemote host said: %b\n" % (ip, note, line)
        )
    why = b"" if outcome.waited is None else b" (nothing in %d seconds)" % outcome.waited
    return Report.deferral(b"Connected to %b but QMTP connection died%b.%b (#4.4.2)\n" % (ip, why, note))


def _letter(reply: Reply) -> bytes:
    if reply.permanent:
        return b"D"
    return b"K" if reply.positive else b"Z"


def _said(reply: Reply) -> bytes:
    return b"Remote host said: " + reply.text
