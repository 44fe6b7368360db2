"""What the service remembers: SQLite on one machine, PostgreSQL in production, the same code for both."""
