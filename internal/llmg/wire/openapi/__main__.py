"""Prints the document of the gateway's own services: `python -m llmg.wire.openapi > apis/openapi.json`."""

import json
import sys

from llmg.wire.openapi.own import own

sys.stdout.write(json.dumps(own(), indent=2, ensure_ascii=False) + "\n")
