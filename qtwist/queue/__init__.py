"""The on-disk queue: accept durably, read back, mark, remove (spec/qmail.md §5, §6)."""
