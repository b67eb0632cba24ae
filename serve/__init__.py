"""A checkpoint for people and programs: the OpenAI server, the terminal chat, the lm-eval adapter. Imports nothing of
train/."""
