"""What the Makefile runs from a checkout; none of it is installed."""
