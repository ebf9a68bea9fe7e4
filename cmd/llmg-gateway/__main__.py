"""`python cmd/llmg-gateway`: REST in front of any gRPC server that has reflection."""

from llmg.boot.gateway import main

main()
