# Confluent Cloud: topics and rights by the cluster's own API key. Agents' keys belong to service accounts, which are the principals.
terraform {
  required_providers {
    kafka = {
      source  = "Mongey/kafka"
      version = ">= 0.8"
    }
  }
}

variable "bootstrap" {
  description = "The cluster's bootstrap server, host:port."
  type        = string
}

variable "api_key" {
  description = "The administrator's API key for the cluster."
  type        = string
}

variable "api_secret" {
  description = "Its secret (TF_VAR_api_secret)."
  type        = string
  sensitive   = true
}

variable "agents" {
  description = "The service account of the agents, such as sa-abc123."
  type        = string
}

provider "kafka" {
  bootstrap_servers = [var.bootstrap]
  tls_enabled       = true
  sasl_mechanism    = "plain"
  sasl_username     = var.api_key
  sasl_password     = var.api_secret
}

module "topics" {
  source       = "../../modules/topics"
  topics_file  = "${path.module}/../../../../include/topics.yaml"
  replication  = 3
  dead_letters = ["enriched_events"]
  parts = [
    { principal = "User:${var.agents}", kind = "plan", inputs = ["raw_events"] },
    { principal = "User:${var.agents}", kind = "agent", inputs = ["raw_events"], outputs = ["enriched_events"] },
  ]
}
