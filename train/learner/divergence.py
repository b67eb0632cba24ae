"""Training that has diverged; apart, so that a launcher knows it without torch."""


class NotFinite(RuntimeError):
    """Too many updates in a row were not finite."""
