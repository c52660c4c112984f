"""The SMTP server: the Twisted shell around :mod:`qtwist.wire.smtp_server`, its factory and its settings."""

from __future__ import annotations
