"""What a command makes before its loop: process, models, prompts, rewards, judges."""
