"""`python -m llmg.backends.xllamacpp --addr host:port`."""

from llmg.backends.xllamacpp import main

main()
