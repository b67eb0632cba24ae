"""Rewards of a judge model: marks, comparisons, and marks of steps."""
