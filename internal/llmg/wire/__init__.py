"""Pure codecs between bytes and core values; no I/O."""
