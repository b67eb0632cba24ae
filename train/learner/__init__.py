"""The learner: policy, critic, updates, and what they leave on disk."""
