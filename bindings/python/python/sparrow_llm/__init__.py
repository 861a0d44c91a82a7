"""Sparse language-model inference on ordinary CPUs."""
