"""Tests that start the real daemon and talk to it with programs that nobody here wrote."""
