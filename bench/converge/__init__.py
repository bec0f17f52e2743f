"""How fast the engine makes, checks and changes thousands of networks, against `ip` and `nft`."""
