"""`python cmd/llmg-backend-xllamacpp --addr host:port`: llama.cpp as a backend of its own."""

from llmg.backends.xllamacpp import main

main()
