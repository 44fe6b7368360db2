"""RabbitMQ access. Framework defaults that could lose a message are overridden here and nowhere else."""
