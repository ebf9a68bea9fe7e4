"""What all doors that speak HTTP share: the server, who notices that a client has left, who may come in."""
