"""Typed configuration: the schema, and loading it from YAML and the command line."""

from configs.load import find, load_config, merge, naming, resolved
from configs.schema import Config

__all__ = ["Config", "find", "load_config", "merge", "naming", "resolved"]
