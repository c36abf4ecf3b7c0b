# The releases of deploy/helm/values/releases.yaml, with its versions and values: what `make cluster-install` installs.
# Use one of the two on a cluster: they compare a release with its chart in different ways.
locals {
  helm     = "${path.module}/../../../helm"
  listed   = { for release in yamldecode(file("${local.helm}/values/releases.yaml")).releases : release.name => release }
  chosen   = { for name, release in local.listed : name => release if !contains(var.without, name) }
  ours     = ["kafka", "factory"]
  external = { for name, release in local.chosen : name => release if !contains(local.ours, name) }
}

resource "helm_release" "external" {
  for_each = local.external

  name             = each.key
  namespace        = each.value.namespace
  create_namespace = true
  repository       = lookup(each.value, "repository", null)
  chart            = each.value.chart
  version          = each.value.version
  values           = concat([file("${local.helm}/values/${each.value.values}")], [for more in lookup(var.values, each.key, []) : more])
  wait             = true
  timeout          = 900
}

resource "helm_release" "kafka" {
  count = contains(keys(local.chosen), "kafka") ? 1 : 0

  name             = "kafka"
  namespace        = local.chosen["kafka"].namespace
  create_namespace = true
  chart            = "${local.helm}/${local.chosen["kafka"].chart}"
  values           = concat([file("${local.helm}/values/${local.chosen["kafka"].values}")], lookup(var.values, "kafka", []))
  wait             = true
  timeout          = 900
  depends_on       = [helm_release.external]

  # The cluster and all that it holds would go with it.
  lifecycle {
    prevent_destroy = true
  }
}

resource "helm_release" "factory" {
  count = contains(keys(local.chosen), "factory") ? 1 : 0

  name             = "factory"
  namespace        = local.chosen["factory"].namespace
  create_namespace = true
  chart            = "${local.helm}/${local.chosen["factory"].chart}"
  values           = concat([file("${local.helm}/values/${local.chosen["factory"].values}")], lookup(var.values, "factory", []))
  wait             = true
  timeout          = 900
  depends_on       = [helm_release.external, helm_release.kafka]
}
