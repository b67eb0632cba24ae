"""What runs inside the sandboxes of reward.code.sandbox. Standard library only; nothing here imports the rest of the
project."""
