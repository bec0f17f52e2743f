"""Stories of the whole controller with seeded faults at every call; see lab/simulated."""
