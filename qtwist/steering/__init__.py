"""What `qtwist queue` does: its verbs, over the queue at hand, with the daemon running or not (doc/queue.md)."""
