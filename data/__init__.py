"""Tasks and examples: reading them, checking them, and rendering their prompts."""

from data.tasks import Example, Task, load_examples, load_tasks, resolve_dataset
from data.templates import render_prompt

__all__ = ["Example", "Task", "load_examples", "load_tasks", "render_prompt", "resolve_dataset"]
