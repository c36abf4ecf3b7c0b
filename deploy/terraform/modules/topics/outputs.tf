output "topics" {
  description = "The topics by name, with partitions and replicas."
  value       = { for name, topic in kafka_topic.this : name => { partitions = topic.partitions, replication = topic.replication_factor } }
}

output "rights" {
  description = "The rights: principal, kind of resource, its name, operation, pattern."
  value       = sort(keys(kafka_acl.this))
}
