"""The QMTP server: the Twisted shell around :mod:`qtwist.wire.qmtp_server`, and its factory."""

from __future__ import annotations
