# The topics of a topics file (include/topics.yaml), the factory's own, and who may do what: the same topics as `factory topics apply` makes.
locals {
  file     = yamldecode(file(var.topics_file))
  defaults = merge({ partitions = 1, replication = 1, config = {} }, { for key, value in try(local.file.defaults, {}) : key => value if value != null })
  declared = { for name, spec in local.file.topics : name => merge([for part in [
    local.defaults, spec, { config = merge([for config in [local.defaults.config, try(spec.config, null)] : config if config != null]...) }
  ] : part if part != null]...) }
  ledger = "${var.prefix}.ledger"
  compacted = {
    "cleanup.policy"            = "compact"
    "segment.bytes"             = 16777216
    "segment.ms"                = 86400000
    "max.compaction.lag.ms"     = 86400000
    "min.cleanable.dirty.ratio" = 0.3
  }
  answers = {
    "cleanup.policy"        = "compact"
    "segment.bytes"         = 67108864
    "segment.ms"            = 86400000
    "min.compaction.lag.ms" = 86400000
    "max.compaction.lag.ms" = 172800000
  }
  replicas = max(1, [for spec in values(local.declared) : spec.replication]...)
  own = {
    (local.ledger)          = { partitions = 12, replication = local.replicas, config = local.compacted }
    "${var.prefix}.answers" = { partitions = 12, replication = local.replicas, config = local.answers }
    "${var.prefix}.control" = { partitions = 12, replication = local.replicas, config = local.compacted }
  }
  dead = { for name in var.dead_letters : "${name}.dead" => merge(local.declared[name], {
    config = merge({ for key, value in local.declared[name].config : key => value if key != "min.compaction.lag.ms" }, { "cleanup.policy" = "delete" })
  }) }
  topics = merge(local.own, local.declared, local.dead)
}

resource "kafka_topic" "this" {
  for_each = local.topics

  name               = each.key
  partitions         = each.value.partitions
  replication_factor = coalesce(var.replication, each.value.replication)
  config             = { for key, value in each.value.config : key => tostring(value) }

  # What a topic holds is gone with it. Whoever means that removes this line, or the topic from the state.
  lifecycle {
    prevent_destroy = true
  }
}
