"""Mixed mode: one physical host runs batch jobs and virtual machines at once, no core twice."""
