"""Per-target shaping of requests and answers."""
