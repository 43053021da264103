"""A model for other programs: one file with its preprocessing, and images that prove its answers.

`docs/artefact.md` specifies the files. Reading, running and verifying one needs no PyTorch.
"""
