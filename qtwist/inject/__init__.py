"""What qmail-inject makes of a message: addresses are read and completed, missing header fields are added."""
