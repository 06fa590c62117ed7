#!/bin/sh
# An agent that is a shell script: it joins through a node, prints what it is sent, and
# leaves at Ctrl-C.  usage: guest.sh NAME [URL]
set -eu
name=$1 node=${2:-http://127.0.0.1:8077}
ask() {
    answer=$(curl -sS --fail-with-body -H 'Content-Type: application/json' \
        ${P2PMESH_HTTP_TOKEN:+-H "Authorization: Bearer $P2PMESH_HTTP_TOKEN"} "$@") ||
        { printf '%s\n' "$answer" >&2; return 1; }
}

ask "$node/registry/register" -d '{"instance_id":"'"$name"'","hostname":"","port":0,
    "capabilities":[],"agent_profiles":[]}'
trap 'ask -X DELETE "$node/registry/deregister/$name"' EXIT
trap exit INT TERM

while :; do
    ask "$node/registry/heartbeat/$name" -d '{"status":"healthy"}'
    ask "$node/messages/$name?wait=5"
    ids=$(printf %s "$answer" | grep -o '"message_id":"[0-9a-f-]*"' | cut -d: -f2 | paste -sd, -)
    [ -n "$ids" ] || continue
    printf '%s\n' "$answer"
    ask "$node/messages/ack/$name" -d '{"message_ids":['"$ids"']}'
done
