"""Prints the protocol's description: `python -m llmg.doors.websocket > docs/asyncapi.yaml`."""

import sys

import yaml

from llmg.doors.websocket.asyncapi import document


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        """Says all that it has to say where it belongs."""
        return True


sys.stdout.write(yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
