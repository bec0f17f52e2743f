"""A site on many hosts: each hypervisor's slice of it, and how its machines' NICs become ports."""
