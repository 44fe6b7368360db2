"""How the service uses RabbitMQ. Framework defaults that could lose a message are overridden here and nowhere else."""
