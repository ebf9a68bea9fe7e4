"""`python -m llmg.boot`: the same as `llmg`."""

from llmg.boot.cli import main

if __name__ == "__main__":
    main()
