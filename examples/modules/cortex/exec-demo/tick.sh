#!/bin/sh
# Any program can be a module. This one prints a line now and then; nexusd keeps the lines as its log,
# SIGTERM ends it because a shell that traps nothing dies of it, and that counts as stopped, not failed.
count=0
while :; do
    count=$((count + 1))
    echo "tick $count"
    sleep 3
done
