"""Understanding: what happens to a packet, what ails a host, what a site looks like. Pure, apart
from the drivers that read the kernel (surroundings, capture)."""
