"""`python -m llmg.boot.settings > config/config.schema.json` renews the schema."""

import sys

from llmg.boot.settings import schema_text

sys.stdout.write(schema_text())
