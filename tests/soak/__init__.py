"""Real processes killed at random moments under load; every accepted message is accounted for."""
