"""What an agent is: ``@agent`` for a user's function, and the three shapes (transform, source, sink) that the runtime drives."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, overload, runtime_checkable
from weakref import WeakKeyDictionary

import msgspec

from factory_agents.errors import AgentError, ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.messages import Message
from factory_agents.kafka.records import MarkRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRun, Counts, Interval, Shard
from factory_agents.reject import Reject
from factory_agents.runtime.dependencies import OUTAGES, Dependency, DependencyError, InterruptedBatchError, complete, tried
from factory_agents.runtime.models import loaded, with_columns
from factory_agents.runtime.numbers import Digits, Kept
from factory_agents.runtime.side_by_side import PER_LANE, Pace, SideBySide, Tasks, Threads
from factory_agents.text import not_json, unknown

if TYPE_CHECKING:
    from factory_agents.runtime.live import LiveSettings
    from factory_agents.runtime.session import RunContext

__all__ = [
    "AgentFunction",
    "Claim",
    "FunctionTransform",
    "LiveSink",
    "Output",
    "PrunedSink",
    "Reject",
    "RowsRefused",
    "SideLog",
    "SideRecord",
    "Sink",
    "SinkOutcome",
    "Source",
    "SourceRecord",
    "Transform",
    "Undecoded",
    "agent",
    "bind_params",
    "source_version",
]


Record: TypeAlias = "bytes | tuple[bytes | None, bytes]"
"""One output value, or a ``(key, value)`` pair where the key differs from the input's."""

Output: TypeAlias = "Record | Reject | list[Record] | None"
"""What became of one input record: forwarded as one or several records, filtered (None), or rejected."""


class Transform(Protocol):
    """Records in, records out. ``identity`` is what enters the fingerprint besides name and version (resolved parameters).

    A ``stateful`` transform is shown the records of committed chunks again when a run resumes, and its outputs for them are dropped.
    ``at_once`` is how many records it needs in one call, where there are so many, to be fast: 1 unless it works on several side by side.
    """

    name: str
    version: str
    identity: dict[str, Any]
    stateful: bool
    at_once: int

    def process(self, messages: Sequence[Message]) -> list[Output]:
        """One output per message, in order. Must be deterministic; never raises for bad data (rejects it)."""
        ...

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """Before the first record of a window, if it is stateful: ``earlier`` gives the reports of the windows before, the newest last."""
        ...

    def finish(self, counts: Counts) -> dict[str, Any] | None:
        """After the last record: the report that goes into the result, or None."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class SideRecord(NamedTuple):
    """A record that is committed beside an agent's outputs."""

    topic: str
    partition: int
    key: bytes
    value: bytes


class SideLog(Protocol):
    """What a transform (its ``log``) wants committed besides its outputs, in the same transactions: what it learned and must not lose."""

    @property
    def age(self) -> float:
        """For how many seconds something has been waiting to be taken; 0: nothing is."""
        ...

    def open(self, config: KafkaConfig, cluster: Cluster, prefix: str, counts: Counts, deadline: float, stop: Callable[[], bool]) -> None:
        """Called once, in the agent's thread, before the first record and after all earlier attempts are fenced.

        ``counts`` are of what is committed already.
        """
        ...

    def take(self, counts: Counts) -> Sequence[SideRecord]:
        """What goes into the transaction that is about to be committed; what it cost is added to ``counts``."""
        ...

    def settle(self, *, committed: bool) -> None:
        """Whether what was taken is committed; if not it has to be taken again. Called from another thread than the agent's."""
        ...

    def leave(self) -> None:
        """The run ends, maybe while the agent is busy: what it waits for there isn't worth waiting for any more."""
        ...


class SourceRecord(msgspec.Struct, frozen=True):
    """One row of a source: ``value`` as it goes to the topic, or why it was rejected; ``where`` for a person (``file:line``).

    :param key: the record's key.
    :param value: the event as JSON text, or the row's text where it is rejected.
    :param where: its place in the source, for a person.
    :param reject: why it goes to the dead letters.
    """

    key: bytes | None
    value: bytes
    where: str
    reject: Reject | None = None


class Source(Protocol):
    """Where ``ingest`` reads from. ``identity`` holds parameters and what tells one content from another (size, checksum, etag)."""

    name: str
    version: str
    identity: dict[str, Any]

    def read(self, interval: Interval | None, skip: int) -> Iterator[Sequence[SourceRecord]]:
        """The interval's rows in a stable order, in batches of bounded size, without the first ``skip`` of them (all rows: None)."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """Who publishes what: identity of one shard of one window at a sink.

    ``window`` sorts by time (the window's key, then the pipeline). ``input_generation`` orders the manifests a window was published from;
    ``generation`` is this attempt's own and greater than every earlier one's. ``done``: Kafka's ledger has the result of just this.
    ``origin`` is the topic or source on which the window was planned.
    """

    pipeline: str
    stage: str
    window: str
    shard: Shard
    plan: str
    fingerprint: str
    input_generation: int
    generation: int
    epoch: int = 0
    reuse: bool = True
    done: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class SinkOutcome:
    """What a sink committed: ``rows = written + duplicates + older + deleted + dropped``; ``notes`` are lines for a person.

    ``deleted`` are keys whose newest record says so, ``dropped`` rows that the table's own triggers did not let in.
    """

    table: str
    rows: int = 0
    written: int = 0
    duplicates: int = 0
    older: int = 0
    deleted: int = 0
    dropped: int = 0
    removed: int = 0
    rejected: int = 0
    notes: tuple[str, ...] = ()
    reused: bool = False
    result: dict[str, Any] = field(default_factory=dict)


class RowsRefused(Exception):  # noqa: N818  # nothing failed: it is the answer to a commit
    """What ``Sink.commit`` raises for rows that the database itself refuses; it will commit the others when it is asked again.

    ``rows``: why, by partition and offset of the record.
    """

    def __init__(self, rows: Mapping[tuple[int, int], Reject]) -> None:
        super().__init__(f"{len(rows)} rows refused")
        self.rows = rows


class Sink(Protocol):
    """Where ``publish`` writes to, exactly: rows, ledger row and fence in one transaction of the sink's own.

    It may have ``system`` and ``address`` too: where its table is (see ``Dataset``).
    """

    name: str
    version: str
    identity: dict[str, Any]

    def claim(self, claim: Claim) -> SinkOutcome | None:
        """Take the shard over, fencing every earlier claimant; the outcome if just this was already committed and may be reused.

        Raises SinkError for an older ``input_generation`` than the one committed.
        """
        ...

    def write(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """Stage the events of records; those that cannot be written are returned by their index, with the reason.

        Nothing is visible before ``commit``.
        """
        ...

    def commit(self, *, rejected: int) -> SinkOutcome:
        """Publish all that was written, atomically with the sink's ledger row. ``rejected`` is recorded there too.

        Raises RowsRefused for single rows that can't be published (they are counted as rejected, and it is called again without them),
        FencedError when a newer claim was made, UnavailableError when the outcome is unknown or it may be tried again.
        """
        ...

    def close(self) -> None:
        """Roll back what is not committed and disconnect."""
        ...


@runtime_checkable
class LiveSink(Protocol):
    """A ``Sink`` that publishes live record by record, without windows."""

    def run_live(self, context: RunContext, settings: LiveSettings) -> Counts:
        """Publish what arrives as a member of a consumer group until ``context.stop`` says so; the counts. Raises as ``run_live`` does."""
        ...


@runtime_checkable
class PrunedSink(Protocol):
    """A ``Sink`` whose own ledger can forget what the pipeline's has forgotten."""

    def prune(self, mark: Callable[[], MarkRecord | None]) -> int:
        """Forget windows below the mark of the claim's origin, which are refused from then on; how many entries went.

        Called after a commit. ``mark`` looks it up, which takes a moment: a sink asks for it once a day or so. An error fails nothing: the
        next publish tries again.
        """
        ...


EventFunction: TypeAlias = Callable[..., Any]

_KEY_NAME = "idempotency_key"
"""The parameter by which a function asks for a key of each record."""

Batch: TypeAlias = bool | Literal["numpy", "arrow"]
"""Whether an agent takes many events at once: as a list, or as columns."""


@dataclass(frozen=True)
class AgentFunction:
    """A user's function as an agent: call it as before, or give it to the runtime as ``module:name``.

    ``function`` takes an event (a dict) and the declared parameters as keywords; it returns an event, None (filtered) or a list of
    events. With ``batch`` it takes a list of events and returns one of these (or a ``Reject``) for each. ``key`` names the
    field whose value becomes the output's key, ``id_field`` the one whose value tells the events of a list apart. ``load`` makes what the
    function needs and is slow to make, a model say: it is called once a process, and the function takes it after the event. With
    ``batch="numpy"`` or ``"arrow"`` it takes the events' fields as columns and returns columns to add.
    Up to ``concurrency``
    calls are made side by side, those of one input key one after the other; an ``async`` function has ``timeout`` seconds for each. All
    members of a live group, or all shards of a window, together make at most ``calls_per_second``. A function with a parameter
    ``idempotency_key`` gets a text there that is another one for each record, and the same whenever that record is tried again.
    """

    function: EventFunction
    name: str
    version: str
    batch: Batch = False
    key: str | None = None
    id_field: str = "event_id"
    concurrency: int = 1
    timeout: float | None = None
    load: Callable[[], Any] | None = None
    calls_per_second: float | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.calls_per_second is not None and not 0 < self.calls_per_second < math.inf:
            raise ConfigurationError(f"agent {self.name!r}: calls_per_second={self.calls_per_second}: expected a number above 0")
        if self.batch and (self.calls_per_second is not None or self.takes_key):
            what = f"a parameter {_KEY_NAME}" if self.takes_key else "calls_per_second"
            raise ConfigurationError(f"agent {self.name!r}: batch takes all events in one call: {what} is for agents that take one event")
        if self.concurrency < 1:
            raise ConfigurationError(f"agent {self.name!r}: concurrency={self.concurrency}: expected at least 1")
        if self.batch and (self.concurrency > 1 or self.is_async):
            raise ConfigurationError(f"agent {self.name!r}: batch takes all events in one plain call: leave concurrency and async out")
        if self.timeout is not None and not self.is_async:
            raise ConfigurationError(
                f"agent {self.name!r}: timeout={self.timeout}: a plain function cannot be ended: make it async, or let its client time out"
            )

    @property
    def is_async(self) -> bool:
        """Whether it is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def takes_key(self) -> bool:
        """Whether it wants an idempotency key with each event."""
        return _KEY_NAME in inspect.signature(self.function).parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain function, as a unit test does."""
        return self.function(*args, **kwargs)

    def bind(self, params: Mapping[str, Any], run: AgentRun | None = None) -> Transform:
        """Check the parameters against the function's signature (names, and types where annotated) and make it a transform.

        ``run`` is whose it is; a live agent has none. Raises ConfigurationError naming the parameter.
        """
        given = 1 if self.load is None else 2
        return FunctionTransform(self, bind_params(self.function, params, f"agent {self.name!r}", skip=given, without=_KEY_NAME))


def bind_params(function: Callable[..., Any], params: Mapping[str, Any], where: str, *, skip: int = 0, without: str = "") -> dict[str, Any]:
    """Keywords for a function or class: every parameter after the first ``skip``, but ``without``, as it is annotated, or its default.

    Raises ConfigurationError, which begins with ``where``, naming the parameter.
    """
    all_ = list(inspect.signature(function).parameters.values())[skip:]
    declared = [p for p in all_ if p.kind is not inspect.Parameter.VAR_POSITIONAL and p.name != without]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in declared):
        return dict(params)
    names = {p.name for p in declared}
    for name in params:
        if name not in names:
            raise ConfigurationError(f"{where}: {unknown('parameter', name, sorted(names))}")
    checked: dict[str, Any] = {}
    for p in declared:
        if p.name in params:
            checked[p.name] = _convert(function, p, params[p.name], where)
        elif p.default is inspect.Parameter.empty:
            raise ConfigurationError(f"{where}: parameter {p.name!r} is required")
        else:
            checked[p.name] = p.default
    return checked


def _convert(function: Callable[..., Any], parameter: inspect.Parameter, value: Any, where: str) -> Any:
    hint = parameter.annotation
    if isinstance(hint, str):
        module = sys.modules.get(getattr(function, "__module__", ""))
        names = getattr(function, "__globals__", None) or getattr(module, "__dict__", {})
        try:
            hint = eval(hint, names)  # the function's own annotation, as typing.get_type_hints does
        except Exception:
            return value
    if hint is inspect.Parameter.empty:
        return value
    try:
        return msgspec.convert(value, hint, strict=False, dec_hook=_made_of_text)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{where}: parameter {parameter.name!r}: {error}") from error
    except TypeError:
        return value


def _made_of_text(type_: type[Any], value: Any) -> Any:
    """A path; every other type that JSON doesn't have is passed on as it came."""
    return Path(value) if isinstance(value, str) and issubclass(type_, PurePath) else value


_versions: WeakKeyDictionary[ModuleType, tuple[ModuleSpec, str]] = WeakKeyDictionary()


def source_version(function: Callable[..., Any]) -> str:
    """A version for a function or class that names none: a hash of its module's source, which tells changed code from unchanged.

    A module's source is read once: a file that changes under a long-lived process is not the code that runs in it.
    """
    module = inspect.getmodule(function)
    if module is None or module.__spec__ is None:
        return _source_hash(function, module)
    spec, version = _versions.get(module, (None, ""))
    if spec is not module.__spec__:  # not seen yet, or loaded again
        version = _source_hash(function, module)
        _versions[module] = module.__spec__, version
    return version


def _source_hash(function: Callable[..., Any], module: ModuleType | None) -> str:
    try:
        text = inspect.getsource(module) if module is not None else inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = code.co_code.hex() + repr(code.co_consts) if code is not None else repr(function)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@overload
def agent(function: EventFunction, /) -> AgentFunction: ...
@overload
def agent(
    *,
    name: str = "",
    version: str = "",
    batch: Batch = False,
    key: str | None = None,
    id_field: str = "event_id",
    concurrency: int = 1,
    timeout: float | None = None,
    load: Callable[[], Any] | None = None,
    calls_per_second: float | None = None,
) -> Callable[[EventFunction], AgentFunction]: ...
def agent(
    function: EventFunction | None = None,
    /,
    *,
    name: str = "",
    version: str = "",
    batch: Batch = False,
    key: str | None = None,
    id_field: str = "event_id",
    concurrency: int = 1,
    timeout: float | None = None,
    load: Callable[[], Any] | None = None,
    calls_per_second: float | None = None,
) -> AgentFunction | Callable[[EventFunction], AgentFunction]:
    """Make a plain function an agent.

    :param function: takes an event and its parameters, and returns an event, a list of events or None. A parameter ``idempotency_key``
        is given a text: another one for each record, the same whenever that record is tried again.
    :param name: what it is called in logs and metrics; by default the function's name.
    :param version: part of the fingerprint: a new one makes a re-run redo the work; by default a hash of the module's source.
    :param batch: True: the function takes a list of events, and returns one answer for each; ``numpy`` or ``arrow``: it takes their
        fields as columns, and returns columns to add.
    :param key: the field whose value becomes the output's key; by default the input's key stays.
    :param id_field: the field that tells the events of a returned list apart.
    :param concurrency: how many calls are made side by side; those of one input key stay one after the other.
    :param timeout: seconds that each call of an ``async`` function has.
    :param load: makes what is slow to make, such as a model, once a process; the function takes it after the event.
    :param calls_per_second: how many calls all members of a live group, or all shards of a window, make together at most.

    Example::

        @agent(version="1", key="user")
        def long_only(event: dict, least: int = 100) -> dict | None:
            return event if len(event["text"]) >= least else None
    """

    def make(f: EventFunction) -> AgentFunction:
        named = (name or f.__name__, version or source_version(f))
        return AgentFunction(f, *named, batch, key, id_field, concurrency, timeout, load, calls_per_second)

    return make if function is None else make(function)


def as_agent(value: Any, where: str) -> AgentFunction:
    """An ``AgentFunction`` from one, or from a bare function; raises AgentError for anything else."""
    if isinstance(value, AgentFunction):
        return value
    if inspect.isfunction(value):
        return agent(value)
    raise AgentError(f"{where}: expected a function or an @agent, got {type(value).__name__}")


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Undecoded(bytes):
    """In place of a value that its topic's codec can't read: no JSON, so that whoever decodes it asks ``decode_event`` why."""

    reject: Reject


def decode_event(value: bytes | None, decode: Callable[[Any], Any] = _decode) -> dict[str, Any]:
    """A record's value as an event; raises Reject for what is not a JSON object."""
    if value is None:
        raise Reject("the record has no value (a tombstone), expected a JSON object", rule="decode")
    try:
        event = decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(value, Undecoded):
            raise value.reject from None
        raise Reject(f"not JSON: {not_json(value, error)}", rule="decode") from error
    if type(event) is not dict:
        raise Reject(f"expected a JSON object, got {type(event).__name__}", rule="decode")
    return event


_WAIT_SECONDS = 1.0
_NOTHING: Mapping[str, Any] = {}

Prepare: TypeAlias = Callable[[Sequence[dict[str, Any]]], Sequence[dict[str, Any] | Reject]]
"""What is done to events before the agent sees them: each changed or not, or rejected, in order."""


def with_model(made: AgentFunction) -> AgentFunction:
    """The agent as one that takes events and parameters alone, as lists and not as columns."""
    function, load, form = made.function, made.load, made.batch
    if isinstance(form, str):
        function = with_columns(function, form, made.name)
    if load is None:
        return replace(made, function=function)
    if made.is_async:

        async def ask(event: Any, **params: Any) -> Any:
            return await function(event, loaded(load), **params)

        return replace(made, function=ask)
    return replace(made, function=lambda event, **params: function(event, loaded(load), **params))


class FunctionTransform:
    """Drives an ``AgentFunction`` over records: decode, prepare, call, encode; whatever it raises rejects that one event.

    Numbers that the agent leaves as they came keep their digits, though it sees floats. An outage of something that the agent calls rejects
    nothing (see ``Dependency``). ``mark`` are fields that every output gets.
    """

    stateful = False

    def __init__(self, agent_function: AgentFunction, params: dict[str, Any], prepare: Prepare | None = None) -> None:
        self.name = agent_function.name
        self.version = agent_function.version
        self.identity: dict[str, Any] = {"params": params}
        self._agent = with_model(agent_function)
        self._load = agent_function.load
        self._params = params
        self._prepare = prepare
        self.mark: dict[str, Any] = {}
        self._digits = Digits()
        self._unnamed = Dependency("a service that the agent calls")
        self._calls: SideBySide | None = None
        self._pace = None if agent_function.calls_per_second is None else Pace(agent_function.calls_per_second)
        self._takes_key = agent_function.takes_key
        if prepare is not None and (self._pace is not None or self._takes_key):
            raise ConfigurationError(
                f"agent {self.name!r}: calls_per_second and {_KEY_NAME} do not go with lookups: join them in a stage of its own"
            )
        self.at_once = 1 if agent_function.concurrency == 1 else PER_LANE * agent_function.concurrency

    @property
    def writes_nothing(self) -> bool:
        """Whether the function says that it returns None, always."""
        return inspect.signature(self._agent.function).return_annotation in (None, "None")

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """See ``Transform.compare``."""

    def load(self) -> None:
        """Have there what the agent loads once a process; a live one does so before it joins its group. Raises AgentError."""
        if self._load is not None:
            loaded(self._load)  # what goes wrong there is no event's fault

    def share(self, of: float) -> None:
        """How much of the work this process does, 0 to 1: so much of ``calls_per_second`` is its own."""
        if self._pace is not None:
            self._pace.share = of

    def process(self, messages: Sequence[Message]) -> list[Output]:
        """See ``Transform.process``."""
        self.load()
        if (calls := self.side_by_side) is not None:
            return _finished_together(calls, messages)
        if self._agent.batch or self._prepare is not None:
            return self._process_whole(messages)
        call, params, finish = self._agent.function, self._params, self._finish
        outputs: list[Output] = []
        append = outputs.append
        simple = self._agent.key is None and not self.mark
        values = [message.value() for message in messages]
        decode, encode, kept = self._digits.decoder(values), _encode, self._digits.kept
        for message, value in zip(messages, values, strict=True):
            try:
                event = decode(value)  # None, a tombstone, raises as other bad values do
                if type(event) is not dict:
                    decode_event(value)
                result = call(event, **params) if params else call(event)
                append(encode(result) if simple and not kept and type(result) is dict else finish(result, message))
            except Reject as reject:
                append(reject)
            except OUTAGES:
                return complete(outputs, len(messages), lambda n: self._attempt(messages[n]), self.refused, self._unnamed)
            except Exception as error:
                append(self._failed(error, message))
        return outputs

    def _attempt(self, message: Message) -> Output:
        """What becomes of one event. Raises DependencyError where something that the agent calls fails."""
        try:
            event = decode_event(message.value(), self._digits.decode)
        except Reject as reject:
            return reject
        with self._unnamed:
            result = self._call(event)
        return self._finish_or_reject(result, message)

    def refused(self, error: Exception, dependency: Dependency) -> Reject:
        """See ``Handles``."""
        return Reject(f"{error} (while {dependency.name} answered for other events)", rule="unavailable")

    def _process_whole(self, messages: Sequence[Message]) -> list[Output]:
        """The whole batch at once; where something that it needs fails, all of it waits."""

        def attempt() -> list[Output]:
            with self._unnamed:
                return self._process_together(messages)

        try:
            outputs: list[Output] = tried(attempt)
        except DependencyError as error:
            error.dependency.trip()
            raise InterruptedBatchError(str(error), [], error.dependency.wait_seconds) from error
        return outputs

    @property
    def _guides_calls(self) -> bool:
        """Whether its calls are more than one after the other, as fast as they go, of an event alone."""
        return self._agent.concurrency > 1 or self._agent.is_async or self._pace is not None or self._takes_key

    @property
    def side_by_side(self) -> SideBySide | None:
        """Its calls, if they are made side by side; who takes their outputs from there, and not from ``process``, waits for none alone."""
        made = self._agent
        if self._calls is None and self._prepare is None and self._guides_calls:
            name, most = f"agent {self.name}", made.concurrency
            pool = Tasks(name, most, made.timeout, self._unnamed, self._await) if made.is_async else Threads(name, most, self._guarded)
            self._calls = SideBySide(pool, most, self, self._unnamed, self._pace)
        return self._calls

    def decoded(self, message: Message) -> tuple[Any, Kept]:
        """See ``Handles``: an event with what the function takes beside it, and the numbers whose digits are kept."""
        event = decode_event(message.value(), self._digits.decode)
        more = {_KEY_NAME: self._key_of(message)} if self._takes_key else {}
        return (event, more), self._digits.taken()

    def _key_of(self, message: Message) -> str:
        """Each record has its own, and each version of the agent another one; so has what lies at that place in a recreated topic."""
        place = (self._agent.name, self._agent.version, message.topic(), message.partition(), message.offset(), message.timestamp())
        made = hashlib.sha256(repr(place).encode())
        made.update(message.value() or b"")
        return made.hexdigest()[:32]

    def finished(self, result: Any, message: Message, kept: Kept) -> Output:
        """See ``Handles``."""
        self._digits.kept = kept
        return self._finish_or_reject(result, message)

    def _guarded(self, given: tuple[Any, Mapping[str, Any]]) -> Any:
        with self._unnamed:
            return self._call(*given)

    async def _await(self, given: tuple[Any, Mapping[str, Any]]) -> Any:
        event, more = given
        with self._unnamed:
            try:
                return await self._agent.function(event, **self._params, **more)
            except Reject as reject:
                return reject
            except OUTAGES:
                raise
            except Exception as error:
                return self._raised(error)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                return self._raised(error)  # of something that it waited for

    def _failed(self, error: Exception, message: Message) -> Reject:
        if isinstance(error, (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError)):
            try:
                decode_event(message.value())
            except Reject as reject:
                return reject
        return self._raised(error)

    def _raised(self, error: BaseException) -> Reject:
        if isinstance(error, MemoryError):  # the process's, and not the event's
            raise error
        try:
            said = str(error)
        except Exception as unspeakable:
            said = f"(its text cannot be had: {type(unspeakable).__name__})"
        return Reject(f"{self._agent.name} raised {type(error).__name__}: {said}", rule="agent-error")

    def _finish(self, result: Any, message: Message) -> Output:
        if result is None or isinstance(result, Reject):
            return result
        if isinstance(result, dict):
            return self._record(result)
        if isinstance(result, list):
            return self._several(result, message)
        raise TypeError(f"returned {type(result).__name__}, expected a dict, a list of dicts or None")

    def _record(self, event: dict[str, Any]) -> bytes | tuple[bytes | None, bytes]:
        value = self._digits.encode(event | self.mark if self.mark else event)
        if self._agent.key is None:
            return value
        key = event.get(self._agent.key)
        if key is None:
            raise Reject(f"the key field {self._agent.key!r} is missing or null", rule="key")
        return (key.encode() if isinstance(key, str) else self._digits.encode(key), value)

    def _several(self, events: list[Any], message: Message) -> Output:
        """Outputs of one event stay distinct: the n-th (from 1) gets the input's id and ``-n``, unless it has an id of its own.

        Where another's own id is that one, the number grows by how many they are, until it is nobody's.
        """
        if not events:
            return None
        field_ = self._agent.id_field
        original = decode_event(message.value()).get(field_) if len(events) > 1 else None
        given = (event.get(field_) for event in events if isinstance(event, dict)) if original is not None else ()
        own = {id_ for id_ in given if isinstance(id_, str)}
        records: list[bytes | tuple[bytes | None, bytes]] = []
        for n, event in enumerate(events, 1):
            if not isinstance(event, dict):
                raise TypeError(f"returned a list holding {type(event).__name__}, expected dicts")
            if original is not None and event.get(field_) in (None, original):
                numbers = itertools.count(n, len(events))
                event = event | {field_: next(id_ for i in numbers if (id_ := f"{original}-{i}") not in own)}
            records.append(self._record(event))
        return records

    def _process_together(self, messages: Sequence[Message]) -> list[Output]:
        outputs: list[Output] = [None] * len(messages)
        decoded: list[dict[str, Any]] = []
        where: list[int] = []
        values = [message.value() for message in messages]
        decode = self._digits.decoder(values)
        for i, value in enumerate(values):
            try:
                decoded.append(decode_event(value, decode))
                where.append(i)
            except Reject as reject:
                outputs[i] = reject
        prepared = self._prepare(decoded) if self._prepare is not None else decoded
        events: list[dict[str, Any]] = []
        called: list[int] = []
        for i, event in zip(where, prepared, strict=True):
            if isinstance(event, Reject):
                outputs[i] = event
            else:
                events.append(event)
                called.append(i)
        results = self._call_batch(events) if self._agent.batch else map(self._call, events)
        for i, result in zip(called, results, strict=True):
            outputs[i] = self._finish_or_reject(result, messages[i])
        return outputs

    def _finish_or_reject(self, result: Any, message: Message) -> Output:
        try:
            return self._finish(result, message)
        except Reject as reject:
            return reject
        except Exception as error:
            return self._raised(error)

    def _call(self, event: dict[str, Any], more: Mapping[str, Any] = _NOTHING) -> Any:
        try:
            return self._agent.function(event, **self._params, **more)
        except Reject as reject:
            return reject
        except OUTAGES:
            raise
        except Exception as error:
            return self._raised(error)

    def _call_batch(self, events: list[dict[str, Any]]) -> list[Any]:
        """The whole batch at once; where that raises, each half, until the events that make it raise stand alone."""
        if not events:
            return []
        copy = self._digits.copy(events) if len(events) > 1 else None
        try:
            results = list(self._agent.function(events, **self._params))
            if len(results) != len(events):
                raise AgentError(
                    f"agent {self.name!r}: a batch of {len(events)} events must give {len(events)} results, got {len(results)}"
                )
            return results
        except (AgentError, *OUTAGES):
            raise
        except Reject as reject:
            failure: Any = reject
        except Exception as error:
            failure = self._raised(error)
        if copy is None:
            return [failure]
        half = len(copy) // 2
        return self._call_batch(copy[:half]) + self._call_batch(copy[half:])

    def finish(self, counts: Counts) -> dict[str, Any] | None:
        """See ``Transform.finish``."""
        return None

    def close(self) -> None:
        """See ``Transform.close``."""
        if self._calls is not None:
            self._calls.close()


def _finished_together(calls: SideBySide, messages: Sequence[Message]) -> list[Output]:
    piece = calls.put(0, messages)
    try:
        while piece.left:
            calls.wait(_WAIT_SECONDS)
    except InterruptedBatchError as interrupted:
        raise InterruptedBatchError(str(interrupted), piece.begun, interrupted.seconds) from interrupted
    finally:
        calls.keep(())
    return piece.outputs
