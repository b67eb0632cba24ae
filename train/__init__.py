"""Training: replay, objectives, updates, the RL loop and SFT."""
