"""llmg: a multi-protocol LLM gateway."""

__version__ = "0.1.0"
