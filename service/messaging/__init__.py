"""All that knows RabbitMQ. Every framework default that could lose a message is overridden here and nowhere else."""
