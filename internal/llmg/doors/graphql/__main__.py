"""Prints the schema in GraphQL's own language: `python -m llmg.doors.graphql > graph/schema.graphql`."""

import sys

from llmg.doors.graphql.schema import sdl

sys.stdout.write(sdl())
