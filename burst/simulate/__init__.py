"""Whole bursts in virtual time: recorded queues, model providers, and the production `decide`."""
