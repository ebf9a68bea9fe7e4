"""REST in OpenAI's shape, on Starlette."""
