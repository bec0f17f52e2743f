"""How the parts that see everything grow with what there is to see: `./run bench scale`."""
