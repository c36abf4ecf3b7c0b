"""A broker that lets a user do what its ACLs say and nothing else."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from factory_agents.kafka.config import KafkaConfig
from factory_agents.sandbox import kafka
from factory_agents.sandbox.processes import free_port
from factory_agents.sandbox.state import HOST, USER, KafkaState
from tests.support.waiting import wait_for

_AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",  # whoever comes without a password: the broker itself, and the tests
}
_FLAGS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
_CLUSTER = "kafka-cluster"


class Acl(NamedTuple):
    """One right: an operation on a resource of this name, or on all whose names begin so."""

    operation: str
    type: str
    name: str
    prefixed: bool = False

    def binding(self) -> AclBinding:
        type_ = ResourceType.BROKER if self.type == "cluster" else _FLAGS[self.type]
        pattern = ResourcePatternType.PREFIXED if self.prefixed else ResourcePatternType.LITERAL
        operation = AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.operation).upper()]
        return AclBinding(type_, self.name, pattern, f"User:{USER}", "*", operation, AclPermissionType.ALLOW)


def parse_acls(commands: str) -> list[Acl]:
    """The ACLs that ``kafka-acls --add`` commands give."""
    found = []
    for command in re.sub(r"\\\n", " ", commands).splitlines():
        words = shlex.split(command, comments=True)
        if not words:
            continue
        assert words[0] == "kafka-acls", command
        assert "--add" in words, command
        values = {flag: [b for a, b in itertools.pairwise(words) if a == f"--{flag}"] for flag in (*_FLAGS, "operation")}
        prefixed = "prefixed" in words
        resources = [(type_, name) for type_ in _FLAGS for name in values[type_]]
        resources += [("cluster", _CLUSTER)] if "--cluster" in words else []
        assert resources, command
        found += [Acl(operation, type_, name, prefixed) for operation in values["operation"] for type_, name in resources]
    return found


class GuardedBroker:
    """Its addresses, and who may do what: ``admin`` may do all, ``config`` is of the one user whose rights are ``acls``."""

    def __init__(self, state: KafkaState, password: str) -> None:
        self.bootstrap = f"{state.host}:{state.port}"
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": USER, "sasl.password": password}
        login["session.timeout.ms"] = "6000"  # who may not even leave its group is missed after this
        self.config = KafkaConfig(f"{state.host}:{state.sasl_port}", login)

    def allow_only(self, acls: Iterable[Acl]) -> None:
        """Give the user these rights, and take all others."""
        wanted = {acl.binding() for acl in acls}
        have = self._acls()
        for gone in have - wanted:
            self.admin.delete_acls([_filter(gone)])[_filter(gone)].result()
        for future in self.admin.create_acls(list(wanted - have)).values() if wanted - have else ():
            future.result()
        wait_for(lambda: self._acls() == wanted, "the ACLs to be in force")

    def _acls(self) -> set[AclBinding]:
        everything = AclBindingFilter(ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY)
        return set(self.admin.describe_acls(everything).result())


def _filter(acl: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(acl.restype, acl.name, acl.resource_pattern_type, acl.principal, acl.host, acl.operation, acl.permission_type)


@contextmanager
def guarded_broker(folder: Path) -> Iterator[GuardedBroker]:
    """A private broker with an authorizer; some seconds to start."""
    state = KafkaState(port=free_port(HOST), controller_port=free_port(HOST), sasl_port=free_port(HOST))
    password = "guarded-secret"
    process = kafka.start(folder, state, password, lambda _: None, more=_AUTHORIZER)
    try:
        kafka.wait_ready(folder, process)
        yield GuardedBroker(state, password)
    finally:
        kafka.end(folder, process, lambda _: None)
