"""qtwist: qmail's mail system as one Twisted application."""

__version__ = "0.1.0"
