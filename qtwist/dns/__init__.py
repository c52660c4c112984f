"""The stub resolver: MX, addresses, TXT, PTR, TLSA (spec/qmail.md §15.8, spec/related.md §12.5).

`names`, `message`, `answers` and `config` are pure rules; `exchange` holds the sockets; `stub` asks the servers in
turn; `cache` remembers; `resolver` puts them together as an :class:`~qtwist.interfaces.IResolver`.
"""
