# A kind cluster on this machine: one broker, live agents, a worker for Temporal's development server, Prometheus, Grafana, Loki. Airflow
# and Temporal's own chart need a PostgreSQL server. Kafka's chart makes the topics (Strimzi). First, at the root of the repository:
#   kind create cluster --name factory
#   docker build --target agent --tag factory-agents:0.1.0 . && kind load docker-image factory-agents:0.1.0 --name factory
#   kubectl apply --filename deploy/kind/temporal.yaml
#   kubectl create namespace monitoring && kubectl create namespace agents
#   kubectl create secret generic grafana-admin --namespace monitoring --from-literal=user=admin --from-literal=password=…
#   kubectl create secret generic factory-agent --namespace agents --from-literal=KAFKA_BOOTSTRAP=factory-kafka-bootstrap.kafka.svc:9092
# Then, in this folder: tofu init && tofu apply
terraform {
  required_providers {
    helm = {
      source  = "hashicorp/helm"
      version = ">= 3.0"
    }
  }
}

variable "kubeconfig" {
  description = "The cluster's kubeconfig."
  type        = string
  default     = "~/.kube/config"
}

provider "helm" {
  kubernetes = {
    config_path    = pathexpand(var.kubeconfig)
    config_context = "kind-factory"
  }
}

module "platform" {
  source  = "../../modules/platform"
  without = ["temporal", "airflow"]
  values = {
    kafka   = [yamlencode({ brokers = { replicas = 1 }, controllers = { replicas = 1 } })]
    factory = [yamlencode({ temporal = { address = "temporal.temporal.svc:7233" }, dagPods = { enabled = false } })]
  }
}
