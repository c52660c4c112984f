"""Mail as values and rules: addresses, envelopes, dates, notices. Pure: no reactor, clock, file or socket."""
