"""Scripted providers, fake clocks and conformance suites, shipped for our tests and others'."""
