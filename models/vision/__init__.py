"""Pictures: opened, encoded, and placed in prompts."""
