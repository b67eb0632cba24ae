def share_of_small_digits(prompts, completions, **columns):
    """Something that a random model earns in part: the share of characters that are 0 to 4."""
    return [sum(c in "01234" for c in text) / max(1, len(text)) for text in completions]
