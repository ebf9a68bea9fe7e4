"""OpenAI's REST dialect, both ways: requests, whole answers, streamed chunks, embeddings, errors."""

DIALECT = "openai"
