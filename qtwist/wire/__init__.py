"""Protocols as state machines that take bytes and return events and bytes. Pure: no reactor, clock, file or socket."""
