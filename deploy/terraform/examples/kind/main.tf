# A kind cluster on this machine: every release of the platform, one broker. Kafka's chart makes the topics (Strimzi).
#   kind create cluster --name factory && tofu init && tofu apply
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
  source = "../../modules/platform"
  values = {
    kafka = [yamlencode({ brokers = { replicas = 1 }, controllers = { replicas = 1 } })]
  }
}
