"""REST to gRPC and back, by the descriptors: google.api.http rules, paths, queries, JSON. Pure."""
