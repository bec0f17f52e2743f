#!/bin/sh
# Keeps parts of the emulated kernel switched on that would else be switched with every table, queueing discipline and
# capture that comes and goes. Linux does that by writing over its own running code (static keys:
# Documentation/staging/static-keys.rst), for all namespaces at once, and an emulated processor that is just there may
# never come out of it again. The namespace is nobody's; who started this ends it.
exec </dev/null >/dev/null 2>&1
ip link set lo up
tc qdisc add dev lo clsact
for family in inet bridge; do
  echo "table $family held {"
  for hook in prerouting input forward output postrouting; do
    echo "  chain $hook { type filter hook $hook priority 0; }"
  done
  echo "}"
done | nft -f -
exec sleep infinity
