"""Generated from apis/llmg/backendapi. Not to be edited."""
