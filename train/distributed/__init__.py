"""Training over ranks: engines, and sharding of rollouts and training samples."""
