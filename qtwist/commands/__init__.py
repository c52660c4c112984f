"""One small module per command line."""
