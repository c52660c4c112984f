"""The POP3 server: the Twisted shell around :mod:`qtwist.wire.pop3_server`, its factory, and maildirs as maildrops."""

from __future__ import annotations
