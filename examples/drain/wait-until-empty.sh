#!/bin/sh
# Waits until an Envoy has no open WebSocket: for a preStop hook, or by hand behind a drain.
# usage: wait-until-empty.sh [admin address] [seconds]      defaults: 127.0.0.1:15000 300
# Ends with 0 when it is empty, with 1 if it is not in time, with 2 if Envoy does not answer.
set -eu
admin=${1:-127.0.0.1:15000}
seconds=${2:-300}
while :; do
    # No line: no WebSocket was ever opened.
    stats=$(curl --silent --show-error --fail --max-time 5 "http://$admin/stats?filter=websocket\.active") || exit 2
    active=$(echo "$stats" | awk '/active: / { sum += $NF } END { print sum + 0 }')
    echo "open WebSockets: $active"
    [ "$active" = 0 ] && exit 0
    [ "$seconds" -le 0 ] && exit 1
    seconds=$((seconds - 1))
    sleep 1
done
