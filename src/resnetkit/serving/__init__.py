"""Serve a model over HTTP: one process, one engine, one bounded queue. Works without PyTorch.

A request passes through these files in order: protocol.py (bytes, deadlines), guard.py (access),
app.py (routes), body.py (images), queue.py (admission, order), decoding.py (pixels), engine.py
(batches).
"""
