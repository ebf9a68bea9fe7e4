"""Where what outlives a request is kept: adapters to files and to Redis."""
