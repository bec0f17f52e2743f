"""Our policy beside others on recorded queues: `./run bench policy`."""
