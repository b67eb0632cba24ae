"""The run around the training: its folder, its files, what a person sees of it. Knows nothing of models or rewards."""
