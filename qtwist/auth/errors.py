"""What goes wrong with a login that is not the fault of who logs in."""

from __future__ import annotations


class LoginUnavailable(Exception):
    """It cannot be found out now whether the login is right; trying again later makes sense. `str()` is for the log."""
