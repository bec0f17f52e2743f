"""The network engine: from one file to bridges, VLANs, GRE tunnels and nftables rules.

It knows nothing of jobs, clouds or databases: values in, kernel objects out.
"""
