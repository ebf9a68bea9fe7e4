"""`python cmd/llmg-grpc`: the gateway, by gRPC alone."""

from llmg.boot.cli import grpc_alone

grpc_alone()
