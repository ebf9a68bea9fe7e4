"""Generated from apis/llmg/jsonapi/v1. Not to be edited."""
