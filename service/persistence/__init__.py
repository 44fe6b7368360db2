"""The database access: SQLite on one machine, PostgreSQL in production, the same code for both."""
