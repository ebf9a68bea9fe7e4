"""WebSocket: `llmg.v1`, many requests over one socket."""
