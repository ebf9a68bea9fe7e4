"""Prints config/config.schema.json; with `--markdown` docs/configuration.md."""

import sys

from llmg.boot.settings import reference_text, schema_text

sys.stdout.write(reference_text() if sys.argv[1:] == ["--markdown"] else schema_text())
