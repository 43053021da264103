"""A model over HTTP: one process, one engine, one bounded queue. Works without PyTorch.

A request goes through these files in order: protocol.py (bytes, deadlines), guard.py (access),
app.py (routes), body.py (the images), queue.py (room, order), decoding.py (pixels), engine.py
(batches).
"""
