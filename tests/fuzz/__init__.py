"""Bytes that nobody meant, for every engine and every parser: see :mod:`tests.fuzz.targets` for what must hold."""
