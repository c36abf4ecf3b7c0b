variable "topics_file" {
  description = "The topics file, as `factory topics apply` takes it."
  type        = string
}

variable "prefix" {
  description = "Prefix of the factory's own topics (ledger, answers, control) and of transactional ids."
  type        = string
  default     = "factory"
}

variable "replication" {
  description = "Replicas of every topic, in place of what the file says: 1 on a cluster of one broker."
  type        = number
  default     = null
}

variable "dead_letters" {
  description = "Declared topics whose dead letters get a topic here: needed where agents may not create one."
  type        = set(string)
  default     = []
}

variable "parts" {
  description = "Who may do what: a part that runs, the topics that it reads and writes, and a live agent's group."
  type = list(object({
    principal = string
    kind      = string
    inputs    = optional(list(string), [])
    outputs   = optional(list(string), [])
    group     = optional(string, "")
  }))
  default = []

  validation {
    condition     = alltrue([for part in var.parts : contains(["plan", "agent", "infer", "publish", "live", "live-version", "rollout", "live-publish", "metrics"], part.kind)])
    error_message = "kind: expected plan, agent, infer, publish, live, live-version, rollout, live-publish or metrics."
  }

  validation {
    condition     = alltrue([for part in var.parts : (part.group != "") == contains(["live", "live-version", "rollout", "live-publish"], part.kind)])
    error_message = "group: expected one for live, live-version, rollout and live-publish, and none for other kinds."
  }
}
