"""The gateway's side of a site on many hosts: what runs where, and each host's part of the site."""
