"""TLS for servers and for the way out: certificates as contexts, handshakes, who is on the other side."""
