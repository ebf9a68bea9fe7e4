"""Values and pure functions: requests, events, failures."""
