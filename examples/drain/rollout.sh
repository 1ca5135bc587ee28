#!/bin/sh
# Rolls an Istio gateway so that its WebSockets move over with a Close frame, and none is cut.
#
# 1. rolls the deployment: new pods take the new connections, old ones stay until they are empty
#    (examples/drain/gateway.yaml);  2. drains: every WebSocket gets its Close frame within WITHIN, a silent one is
#    ended END_SILENT_AFTER later;  3. waits until the old pods are gone;  4. takes the drain back.
# WebSockets of the new pods are due WITHIN after they were opened, so that few of them receive theirs before step 4.
#
# usage: rollout.sh            with, as environment variables, what is not as here:
set -eu
: "${NAMESPACE:=istio-system}" "${DEPLOYMENT:=istio-ingressgateway}" "${PODS:=istio=ingressgateway}"
: "${PLUGIN:=ws-clean-close-http}" "${WITHIN:=60s}" "${END_SILENT_AFTER:=10s}" "${PATIENCE:=600}"
: "${KUBECTL:=kubectl}"
k() { $KUBECTL --namespace "$NAMESPACE" "$@"; }
patch() { k patch wasmplugin "$PLUGIN" --type merge --patch "{\"spec\":{\"pluginConfig\":{\"drain\":$1}}}"; }

old=$(k get pods --selector "$PODS" --output name)
k rollout restart "deployment/$DEPLOYMENT"
k rollout status "deployment/$DEPLOYMENT" --timeout "${PATIENCE}s"

# Each drain has a reason of its own: Envoy does not announce a configuration that equals one still in use.
trap 'patch null' EXIT
patch "{\"within\":\"$WITHIN\",\"endSilentAfter\":\"$END_SILENT_AFTER\",\"reason\":\"rollout $(date +%s)\"}"

while :; do
    open=0 left=0
    for pod in $old; do
        stats=$(k exec "$pod" --container istio-proxy -- \
            pilot-agent request GET 'stats?filter=websocket\.active' 2>/dev/null) || continue
        left=$((left + 1))
        open=$((open + $(echo "$stats" | awk '/active: / { sum += $NF } END { print sum + 0 }')))
    done
    echo "rollout: $left old pods, $open open WebSockets"
    [ "$open" = 0 ] && break
    PATIENCE=$((PATIENCE - 1))
    [ "$PATIENCE" -le 0 ] && { echo "rollout: gave up waiting: $open are left" >&2; exit 1; }
    sleep 1
done
