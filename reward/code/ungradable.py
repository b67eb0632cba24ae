"""What a task's tests can be refused for."""


class Ungradable(ValueError):
    """The tests cannot be run apart from the program; the message says why."""
