"""The SMTP server: the Twisted shell and factory around :mod:`qtwist.wire.smtp_server`."""
