"""Topics that are ready to be used when the call returns."""

from __future__ import annotations

from confluent_kafka.admin import AdminClient, NewTopic

from tests.support.waiting import wait_for


def create_topic(admin: AdminClient, name: str, partitions: int, **config: object) -> None:
    """Create a topic with the broker's own number of replicas, and wait until all of its partitions are led."""
    settings = {key.replace("_", "."): str(value) for key, value in config.items()}
    admin.create_topics([NewTopic(name, partitions, -1, config=settings)])[name].result()
    wait_for(lambda: _led(admin, name) == partitions, f"the topic {name}")


def recreate(admin: AdminClient, name: str, partitions: int, **config: object) -> None:
    """Delete a topic and create another of its name."""
    admin.delete_topics([name])[name].result()
    wait_for(lambda: name not in admin.list_topics(timeout=10).topics, f"the topic {name} to be gone")
    create_topic(admin, name, partitions, **config)


def _led(admin: AdminClient, name: str) -> int:
    partitions = admin.list_topics(name, timeout=10).topics[name].partitions.values()
    return sum(partition.leader >= 0 for partition in partitions)
