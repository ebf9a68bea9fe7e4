"""The composition root: settings, wiring, serving, the command line."""
