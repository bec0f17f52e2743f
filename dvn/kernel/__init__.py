"""Kernel objects as values: look at them, compare, plan, change, look again."""
