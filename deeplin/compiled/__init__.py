"""C files of the package as libraries in memory, and their calls on several threads."""

from deeplin.compiled.build import TALL, cache_folder, library
from deeplin.compiled.threads import in_parts
from deeplin.compiled.vectors import REALS, VECTOR_BYTES, loops_for, macros, vectors_of, width_of

__all__ = [
    "REALS",
    "TALL",
    "VECTOR_BYTES",
    "cache_folder",
    "in_parts",
    "library",
    "loops_for",
    "macros",
    "vectors_of",
    "width_of",
]
