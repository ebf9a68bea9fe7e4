"""Adapters in: each turns a protocol into a request, and events back into that protocol."""
