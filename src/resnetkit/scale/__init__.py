"""Many images -> answers, on engines that distribute work: Ray Data, Daft, Spark."""

from .batches import SPARK_SCHEMA, BatchPredictor

__all__ = ["SPARK_SCHEMA", "BatchPredictor"]
