"""Starts, watches and stops the engines' processes."""
