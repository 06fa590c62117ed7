#!/bin/sh
# An agent that is a shell script: it joins through a node, prints what it is sent, and
# leaves at Ctrl-C.  usage: guest.sh NAME [URL]
set -eu
name=$1 node=${2:-http://127.0.0.1:8077}
ask() { curl -sSf -H 'Content-Type: application/json' "$@"; }

ask "$node/registry/register" -d '{"instance_id":"'"$name"'","hostname":"","port":0,
    "capabilities":[],"agent_profiles":[]}' >/dev/null
trap 'ask -X DELETE "$node/registry/deregister/$name"' EXIT
trap exit INT TERM

while :; do
    ask "$node/registry/heartbeat/$name" -d '{"status":"healthy"}' >/dev/null
    messages=$(ask "$node/messages/$name?wait=5")
    ids=$(printf %s "$messages" | grep -o '"message_id":"[0-9a-f-]*"' | cut -d: -f2 | paste -sd, -)
    [ -n "$ids" ] || continue
    printf '%s\n' "$messages"
    ask "$node/messages/ack/$name" -d '{"message_ids":['"$ids"']}'
done
