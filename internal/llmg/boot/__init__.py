"""The composition root: settings, wiring, serving, the command line."""

import os

# gRPC reads it when it is imported, which is why it stands here. With its "event engine" each read of a listener's
# connection passes through two more threads, and a call costs a tenth more.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
