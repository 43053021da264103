"""A model for other programs: one file with its preprocessing, and images to verify it with.

`docs/artefact.md` specifies the files. Reading, running and verifying one needs no PyTorch.
"""
