"""OpenAPI 3.1 of what google.api.http rules make of services. Pure."""
