"""`python cmd/llmg`: the gateway, all doors."""

from llmg.boot.cli import main

main()
