variable "without" {
  description = "Releases to leave out, where the cluster has their like: strimzi and kafka with a managed Kafka, for example."
  type        = set(string)
  default     = []
}

variable "values" {
  description = "More values (YAML) by release, each over the ones before. Passwords belong in Kubernetes Secrets, which values name."
  type        = map(list(string))
  default     = {}
}
