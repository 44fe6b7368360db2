"""The HTTP ingress: REST calls become commands, gateway callbacks become reports, reads query the database."""
