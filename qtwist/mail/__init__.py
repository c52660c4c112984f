"""Mail as values and rules: addresses, envelopes, reports, dates, header lines. Pure: no reactor, clock, file or socket."""
