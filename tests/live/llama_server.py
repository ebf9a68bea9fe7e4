"""llama.cpp's own HTTP server, in a process of its own: says where it listens, and ends when its input does."""

from __future__ import annotations

import sys

import xllamacpp

from llmg.backendapi import backend_pb2 as pb
from llmg.backends.xllamacpp.params import text_params


def main(model: str, key: str) -> None:
    """Serves until standard input is closed."""
    params = text_params(pb.ModelOptions(ModelFile=model, MMap=True, ContextSize=4096))
    params.api_keys = [key]
    server = xllamacpp.Server(params)
    sys.stderr.write(f"serving on {server.listening_address}\n")
    sys.stderr.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
