"""The stub resolver: MX, addresses, TXT, PTR, TLSA."""
