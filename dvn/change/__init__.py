"""Changing a running site safely: verify, try, history, and keeping it as it was told."""
