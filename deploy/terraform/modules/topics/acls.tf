# The rights of docs/least-rights.md, for each part that runs.
locals {
  needs_ledger = ["plan", "agent", "infer", "publish", "live-publish"]
  granted = flatten([for part in var.parts : concat(
    contains(local.needs_ledger, part.kind) ? [for operation in ["Read", "Write", "DescribeConfigs"] : [part.principal, "Topic", local.ledger, operation, "Literal"]] : [],
    part.kind == "metrics" ? [[part.principal, "Topic", local.ledger, "Read", "Literal"], [part.principal, "Group", "${var.prefix}.metrics", "Read", "Literal"]] : [],
    part.kind == "infer" ? [for operation in ["Read", "Write", "DescribeConfigs"] : [part.principal, "Topic", "${var.prefix}.answers", operation, "Literal"]] : [],
    !contains(["live-version", "rollout"], part.kind) ? [] : [
      [part.principal, "Topic", "${var.prefix}.control", "Read", "Literal"],
      [part.principal, "Topic", "${var.prefix}.control", "Write", "Literal"],
      [part.principal, "Group", "${part.group}~", part.kind == "rollout" ? "Describe" : "Read", "Prefixed"],
      [part.principal, "TransactionalID", "${var.prefix}|route|${part.group}", "Write", "Literal"],
    ],
    [for pair in setproduct(part.inputs, part.kind == "plan" ? ["Describe", "DescribeConfigs"] : part.kind == "rollout" ? ["Describe"] : part.kind == "live-publish" ? ["Read", "DescribeConfigs"] : ["Read"]) : [part.principal, "Topic", pair[0], pair[1], "Literal"]],
    [for pair in setproduct(part.outputs, ["Write", "DescribeConfigs"]) : [part.principal, "Topic", pair[0], pair[1], "Literal"]],
    [for name in contains(["publish", "live-publish"], part.kind) ? part.inputs : part.outputs : [part.principal, "Topic", "${name}.dead", "Write", "Literal"]],
    part.group == "" ? [] : [[part.principal, "Group", part.group, part.kind == "rollout" ? "Describe" : "Read", "Literal"]],
    [for id in lookup(local.transactional, part.kind, []) : [part.principal, "TransactionalID", "${var.prefix}|${id}|", "Write", "Prefixed"]],
  )])
  transactional = {
    plan         = ["plan"]
    agent        = ["stage"]
    publish      = ["stage"]
    infer        = ["stage"]
    live         = ["live"]
    live-version = ["live"]
    live-publish = ["plan", "stage"]
  }
  # flatten takes lists apart to the end: five words are one right
  rights = { for words in distinct(chunklist(local.granted, 5)) : join(" ", words) => words }
}

resource "kafka_acl" "this" {
  for_each = local.rights

  acl_principal                = each.value[0]
  acl_host                     = "*"
  resource_type                = each.value[1]
  resource_name                = each.value[2]
  acl_operation                = each.value[3]
  acl_permission_type          = "Allow"
  resource_pattern_type_filter = each.value[4]
}
