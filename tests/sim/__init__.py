"""The crash machine: queue, deliveries and queue manager over a disk that forgets (issue 6, doc/durability.md)."""
