"""gRPC: the gateway's own services, reflection and health, on grpc.aio."""
