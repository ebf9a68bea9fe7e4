"""Adapters out: each turns a request into an upstream call and the answer into events."""
