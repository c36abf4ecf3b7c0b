# Amazon MSK: a cluster with SASL/SCRAM, the topics and rights, and the platform on an existing EKS cluster without its own Kafka.
# The platform's Secrets and databases come first: docs/kubernetes.md.
terraform {
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
    helm = {
      source  = "hashicorp/helm"
      version = ">= 3.0"
    }
    kafka = {
      source  = "Mongey/kafka"
      version = ">= 0.8"
    }
  }
}

variable "subnets" {
  description = "Three subnets, in three zones."
  type        = list(string)
}

variable "security_groups" {
  description = "Security groups of the brokers."
  type        = list(string)
}

variable "scram_secret_arn" {
  description = "The Secrets Manager secret that holds the administrator's name and password; its name begins with AmazonMSK_."
  type        = string
}

variable "admin" {
  description = "The administrator's name."
  type        = string
}

variable "admin_password" {
  description = "The administrator's password (TF_VAR_admin_password)."
  type        = string
  sensitive   = true
}

variable "kubeconfig" {
  description = "The EKS cluster's kubeconfig."
  type        = string
}

resource "aws_msk_cluster" "factory" {
  cluster_name           = "factory"
  kafka_version          = "3.9.x"
  number_of_broker_nodes = 3

  broker_node_group_info {
    instance_type   = "kafka.m7g.large"
    client_subnets  = var.subnets
    security_groups = var.security_groups
    storage_info {
      ebs_storage_info {
        volume_size = 500
      }
    }
  }

  client_authentication {
    sasl {
      scram = true
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_msk_scram_secret_association" "admin" {
  cluster_arn     = aws_msk_cluster.factory.arn
  secret_arn_list = [var.scram_secret_arn]
}

provider "kafka" {
  bootstrap_servers = split(",", aws_msk_cluster.factory.bootstrap_brokers_sasl_scram)
  tls_enabled       = true
  sasl_mechanism    = "scram-sha512"
  sasl_username     = var.admin
  sasl_password     = var.admin_password
}

module "topics" {
  source       = "../../modules/topics"
  topics_file  = "${path.module}/../../../../include/topics.yaml"
  dead_letters = ["raw_events", "enriched_events", "validated_events"]
  parts = [
    { principal = "User:airflow", kind = "plan", inputs = ["raw_events"] },
    { principal = "User:agents", kind = "agent", inputs = ["raw_events"], outputs = ["enriched_events"] },
    { principal = "User:metrics", kind = "metrics" },
  ]
  depends_on = [aws_msk_scram_secret_association.admin]
}

provider "helm" {
  kubernetes = {
    config_path = pathexpand(var.kubeconfig)
  }
}

module "platform" {
  source  = "../../modules/platform"
  without = ["strimzi", "kafka"]
}
