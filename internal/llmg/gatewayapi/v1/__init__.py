"""Generated from apis/llmg/gatewayapi/v1. Not to be edited."""
