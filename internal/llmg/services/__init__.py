"""Use cases that are no inference, free of any transport."""
