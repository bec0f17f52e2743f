"""The whole controller in a made-up world, in virtual time, with seeded faults at every call.

What decides, acts and remembers is the product's own: `gateway.loops.burst.BurstLoop`, the store
(SQLite), the enrolment, the EC2 provider. What it meets is made up, by the rules of the real ones:
an EC2 that lists late and knows a ClientToken again (`ec2`), a Slurm that refuses to forget a node
with a job on it (`farm`), machines that boot, join, hang, die and power themselves off (`guests`),
tunnels (`network`), and an operator. `world.World(seed).run()` lives one story to its end and
raises `Broken` when something happened that must never happen; the same seed gives the same story.
"""
