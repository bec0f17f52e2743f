"""Addresses by DHCPv4 and DHCPv6, router advertisements and DNS for the tenants' networks."""
