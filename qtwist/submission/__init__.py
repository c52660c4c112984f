"""Mail from our own users: SMTP with rules of its own (RFC 6409)."""
