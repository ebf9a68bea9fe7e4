"""The gateway's public gRPC contract, generated from apis/llmg/gatewayapi."""
