"""What a new mail server needs, looked at: names, DNS, certificates, relaying, clock, permissions."""
