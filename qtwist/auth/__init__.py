"""Who may log in: credentials, their store, checkpassword programs, and what slows down who guesses.

:class:`~qtwist.auth.authenticator.Authenticator` is what servers ask;
:func:`~qtwist.auth.making.make_authenticator` makes one for a home.
"""
