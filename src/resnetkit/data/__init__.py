"""Files -> batches.

The steps, by module::

folder (which files) -> decode (bytes -> pixels) -> transforms (pixels -> tensor) -> loader
"""
