"""Limits: how many requests and tokens a minute, and how many at the same time, at each level of the catalog."""
