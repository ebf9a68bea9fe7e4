"""The engine xllamacpp: llama.cpp's own server inside this process, with continuous batching.

- `params`: ModelOptions -> llama.cpp's parameters
- `prompts`: PredictOptions -> a request in llama.cpp's shape
- `answers`: llama.cpp's chunks -> Reply, and its errors -> statuses
- `engine`: a loaded model: slots, threads, cancellation
- `service`: the RPCs
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point `llmg-backend-xllamacpp`."""
    from llmg.backends.servicer import serve
    from llmg.backends.xllamacpp.service import XllamacppServicer

    sys.exit(serve(XllamacppServicer))
