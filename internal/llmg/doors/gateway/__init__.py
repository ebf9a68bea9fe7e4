"""The REST gateway: RPCs by HTTP and JSON, as their google.api.http rules have it, in process or on another server."""
