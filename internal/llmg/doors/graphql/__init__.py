"""GraphQL: queries, mutations and subscriptions, over HTTP and WebSocket. Imported only where the door is open."""
