"""The roles as processes of their own, each with its account (doc/security.md)."""
