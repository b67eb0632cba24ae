"""The algorithm, pure: masking, replay, advantages, objectives, curriculum. No ranks, no files."""
