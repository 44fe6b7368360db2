"""The door in: REST calls become commands, gateway callbacks become reports, reads go to the database."""
