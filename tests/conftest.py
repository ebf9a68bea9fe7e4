"""Settings for all tests: property tests try the same examples on every run. `--hypothesis-profile=long` tries more."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, database=None)
settings.register_profile("long", max_examples=1000, deadline=None, database=None)
settings.load_profile("ci")
