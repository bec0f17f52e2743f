"""The daemon's loops: each reads the whole truth, acts on the difference, and looks again."""
