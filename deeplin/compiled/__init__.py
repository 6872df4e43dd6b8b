"""C files of the package as libraries in memory, and their calls on several threads."""

from deeplin.compiled.build import TALL, cache_folder, library
from deeplin.compiled.threads import in_parts

__all__ = ["TALL", "cache_folder", "in_parts", "library"]
