#!/usr/bin/env bash
# The eight steps from an empty laptop to an event that became an enriched event and a finished workflow, on kind (docs/walkthrough.md).
# Needs kind, docker, kubectl, helm. Each step does only what is missing: run it again as often as you like.
#   scripts/walkthrough.sh                       all of it; --without-observability leaves step 7 out
#   scripts/walkthrough.sh --down                remove the cluster
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cluster=factory
observability=yes
for argument in "$@"; do
  case $argument in
    --down) exec kind delete cluster --name "$cluster" ;;
    --without-observability) observability=no ;;
    *)
      echo "error: unknown argument $argument: --without-observability or --down" >&2
      exit 2
      ;;
  esac
done
for program in kind docker kubectl helm; do
  command -v "$program" >/dev/null || {
    echo "error: $program is not installed" >&2
    exit 1
  }
done

step() { echo "== step $1: $2"; }
kube() { kubectl --context "kind-$cluster" "$@"; }
chart() { helm --kube-context "kind-$cluster" upgrade --install --create-namespace --wait --timeout 10m "$@"; }
version() { awk -v name="$1" '$2 == "name:" {at = $3 == name} at && $1 == "version:" {print $2}' deploy/helm/values/releases.yaml; }
broker() { kube -n kafka get pods -l strimzi.io/pool-name=broker -o jsonpath='{.items[0].metadata.name}'; }
try() { # SECONDS COMMAND…: until it succeeds
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || {
      echo "error: waited too long for: $*" >&2
      "$@"
      return 1
    }
    sleep 2
  done
}

step 1 "Kafka: three controllers, three brokers"
kind get clusters 2>/dev/null | grep -qx "$cluster" || kind create cluster --name "$cluster" --wait 3m
chart strimzi oci://quay.io/strimzi-helm/strimzi-kafka-operator --version "$(version strimzi)" --namespace kafka --values deploy/helm/values/strimzi.yaml
chart kafka deploy/helm/kafka --namespace kafka --values deploy/kind/kafka.yaml
kube -n kafka wait kafka/factory --for=condition=Ready --timeout=10m

step 2 "topics: 12 partitions, 3 replicas, from include/topics.yaml"
kube -n kafka wait kafkatopic --all --for=condition=Ready --timeout=3m

step 3 "the agents' image"
docker build --quiet --target project --tag my-agents:1 .
kind load docker-image my-agents:1 --name "$cluster"

step 5 "Temporal, before the workers that need it"
kube apply --filename deploy/kind/temporal.yaml
kube -n temporal rollout status deployment/temporal --timeout=5m

if [ "$observability" = yes ]; then
  step 7 "Prometheus, Grafana, Loki, before the monitors that they take up"
  kube create namespace monitoring --dry-run=client --output=yaml | kube apply --filename -
  kube -n monitoring get secret grafana-admin >/dev/null 2>&1 ||
    kube -n monitoring create secret generic grafana-admin --from-literal=user=admin --from-file=password=<(head -c 18 /dev/urandom | base64)
  chart kube-prometheus-stack kube-prometheus-stack --repo https://prometheus-community.github.io/helm-charts \
    --version "$(version kube-prometheus-stack)" --namespace monitoring --values deploy/helm/values/kube-prometheus-stack.yaml
  chart loki loki --repo https://grafana-community.github.io/helm-charts --version "$(version loki)" --namespace monitoring \
    --values deploy/helm/values/loki.yaml
fi

step "4 and 6" "four live agents, a worker, and what starts a workflow"
kube create namespace agents --dry-run=client --output=yaml | kube apply --filename -
kube label --overwrite namespace agents pod-security.kubernetes.io/enforce=restricted
kube -n agents create secret generic factory-agent --from-literal=KAFKA_BOOTSTRAP=factory-kafka-bootstrap.kafka.svc:9092 \
  --dry-run=client --output=yaml | kube apply --filename -
chart factory deploy/helm/factory --namespace agents --values deploy/kind/factory.yaml --set "monitoring.enabled=$([ "$observability" = yes ] && echo true || echo false)"

step 8 "one event in, one enriched event out, one workflow done"
id=test-$(date +%s)
kafka() { kube -n kafka exec -i "$(broker)" -c kafka -- "bin/kafka-console-$1.sh" --bootstrap-server localhost:9092 "${@:2}"; }
enriched() { # the consumer ends by its time-out, whatever its status is then
  { kafka consumer --topic enriched_events --from-beginning --isolation-level read_committed --timeout-ms 10000 2>/dev/null || true; } |
    grep -F "\"$id\""
}
printf '{"event_id":"%s","payload":"sample"}\n' "$id" | kafka producer --topic raw_events
try 120 enriched
found=$(enriched)
[ "$(wc -l <<<"$found")" = 1 ] || {
  echo "error: expected one enriched event, found: $found" >&2
  exit 1
}
echo "$found"
try 120 kube -n temporal exec deploy/temporal -- temporal workflow result --workflow-id "walkthrough/$id"
echo "workflow walkthrough/$id: completed"
