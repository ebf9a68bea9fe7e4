"""`python cmd/llmg-graphql`: the gateway, by GraphQL alone."""

from llmg.boot.cli import graphql_alone

graphql_alone()
