"""Events that a contract marks as deletes: what a sink is given in their place are records without a value, as a codec makes them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from factory_agents.contracts import TableSpec
from factory_agents.contracts.figures import finder
from factory_agents.kafka.messages import Message
from factory_agents.runtime.codecs import DeletedMessage

__all__ = ["DeletesReader"]

_NULL = msgspec.Raw(b"null")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NO_EVENT = (msgspec.MsgspecError, ValueError, RecursionError)


class DeletesReader:
    """Finds the events that delete, where the table has a marker of them. Of these the key alone is read on."""

    def __init__(self, table: TableSpec) -> None:
        marker = table.delete_marker if table.deletes else None
        self._field = marker.field if marker is not None else None
        self._marks = finder(marker.values if marker is not None else ())
        self._key = table.key

    def read(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The records, those that delete without their values: their keys say which columns they hold."""
        return messages if self._field is None else list(map(self._read, messages))

    def _read(self, message: Message) -> Message:
        value = message.value()
        if value is None:
            return message
        try:
            fields = _fields(value)
            mark = msgspec.json.decode(fields.get(self._field or "", _NULL))
        except _NO_EVENT:
            return message  # the sink's reader says what is wrong with it
        if not self._marks(mark):
            return message
        return DeletedMessage(message, msgspec.json.encode({name: fields.get(name, _NULL) for name in self._key}))
