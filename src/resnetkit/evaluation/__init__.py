"""Logits -> evidence."""
