"""Spans of runs, chunks and traced events, by OpenTelemetry's SDK: import it only where traces are wanted (see ``tracing``)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

from opentelemetry import context, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from factory_agents.errors import StoppedError, UnavailableError
from factory_agents.telemetry.observer import Batch, Commit, Done, Observer, Subject
from factory_agents.telemetry.trace_context import TRACEPARENT, TraceContext, parse_traceparent
from factory_agents.telemetry.tracing import collector_address

__all__ = ["RunTrace", "Traces"]

log = logging.getLogger(__name__)

Headers: TypeAlias = "list[tuple[str, bytes | None]]"

_EXIT_SECONDS = 1.7
_LOAD_SECONDS = 10.0
"""For the SDK's exporter, where it is still being loaded at the end: a pod with a tenth of a core takes some seconds for that."""
_SDK = "opentelemetry.sdk"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_MOST_LINKS = 16
_MOST_EVENTS = 500
"""Spans of events that wait for one commit: what the SDK's queue takes at once, several times over."""
_EVENTS_A_SECOND = 100
"""Events of others' traces that a run follows in a second; a span costs what four events do."""


class Traces:
    """What writes this process's spans. Thread-safe; nothing here waits for the collector, but ``close`` for a moment.

    ``rate``: how many events a second a source begins a trace for.
    """

    def __init__(self, service: str, rate: float = 1.0) -> None:
        own = Resource.create()
        named = str(own.attributes.get(SERVICE_NAME, "")).partition(":")[0] not in ("", "unknown_service")
        self._exporter = _WarnsOnce()
        self._provider = TracerProvider(resource=own if named else own.merge(Resource({SERVICE_NAME: service})), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self.tracer = self._provider.get_tracer("factory_agents")
        self.rate = rate

    @contextmanager
    def run(self, subject: Subject, *, parent: str = "", links: Sequence[str] = (), topic: str = "") -> Iterator[RunTrace]:
        """A span about one run, a child of ``parent``, with links to the runs that wrote what it reads (``traceparent`` each).

        ``topic`` is what it reads, or without one writes. An exception marks it as failed, by the error's class: its text is for the log.
        """
        span = self.tracer.start_span(
            subject.stage,
            context=_within(parse_traceparent(parent)),
            kind=SpanKind.CONSUMER,
            attributes=_attributes(subject, topic),
            links=[Link(_span_context(to)) for to in map(parse_traceparent, links[:_MOST_LINKS]) if to is not None],
        )
        try:
            yield RunTrace(self, span, subject, topic)
        except StoppedError:
            span.set_attribute("factory.stopped", True)
            raise
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            if span.is_recording():
                self.prepare()
            span.end()

    def live(self, subject: Subject, topic: str) -> RunTrace:
        """For an agent without a window, which has no span of its own: it might not end for weeks. Each chunk is a trace."""
        return RunTrace(self, None, subject, topic)

    @contextmanager
    def within(self, parent: str | bytes | None) -> Iterator[None]:
        """What begins spans of its own, such as an interceptor, begins them as parts of the one that ``parent`` names."""
        token = context.attach(_within(parse_traceparent(parent)))
        try:
            yield
        finally:
            context.detach(token)

    @property
    def current(self) -> str:
        """The span that is current here, as ``traceparent``; empty where there is none."""
        own = trace.get_current_span().get_span_context()
        return _named(own).text if own.is_valid else ""

    def prepare(self) -> None:
        """There will be spans to send."""
        self._exporter.load()

    def close(self) -> None:
        """Send what is left, for a moment once there is something to send it with; a collector that doesn't answer keeps nobody."""
        self._exporter.loaded(_LOAD_SECONDS)
        sender = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sender.start()
        sender.join(_EXIT_SECONDS)
        self._exporter.end(in_time=not sender.is_alive())


class _Stamped(Protocol):
    """A record that knows when it was written: the timestamp's type, and milliseconds since 1970."""

    def timestamp(self) -> tuple[int, int]: ...


class RunTrace(Observer):
    """The trace of one run: spans of its chunks, and of those events that carry a trace. Not thread-safe, as a run isn't.

    A span is made of a chunk, or an event, once it is committed: what is dropped leaves none.
    """

    def __init__(self, traces: Traces, span: Span | None, subject: Subject, topic: str) -> None:
        self._tracer = traces.tracer
        self._prepare = traces.prepare
        self._span = span
        self._within = trace.set_span_in_context(span) if span is not None else None
        self._attributes = _attributes(subject, topic)
        self._stage = subject.stage
        self._share = _Share()
        self._rate = traces.rate
        self._due = 1.0 if traces.rate else 0.0  # a run, however short, shows one event
        self._due_at = 0.0
        self._batch_began = self._chunk_began = 0
        self._events: list[Span] = []
        self.followed: list[tuple[int, str]] = []
        """When those events were written that are followed now (milliseconds since 1970), and their traces' ids."""
        self._committed: list[SpanContext] = []
        self._last: tuple[object, Span] | None = None

    @property
    def context(self) -> TraceContext | None:
        """The run's own span, None where there is none."""
        if self._span is None:
            return None
        return _named(self._span.get_span_context())

    # Of runs and chunks

    def batch(self, subject: Subject, batch: Batch) -> None:
        """See ``Observer``."""
        self._prepare()
        self._batch_began = time.time_ns() - int(batch.seconds * 1e9)
        self._chunk_began = self._chunk_began or self._batch_began

    def committed(self, subject: Subject, commit: Commit) -> None:
        """See ``Observer``."""
        links, self._committed = self._committed, []
        began, self._chunk_began = self._chunk_began, 0
        if not commit.records:
            return
        ended = time.time_ns()
        figures = {
            "messaging.batch.message_count": commit.records,
            "factory.written": commit.written,
            "factory.written_bytes": commit.bytes,
            "factory.rejected": sum(commit.rejected.values()),
            "factory.commit_seconds": commit.seconds,
        }
        self._tracer.start_span(
            f"{self._stage} chunk",
            context=self._within,
            kind=SpanKind.CONSUMER,
            start_time=began or ended - int(commit.seconds * 1e9),
            attributes={**self._attributes, **figures},
            links=[Link(to) for to in links[:_MOST_LINKS]],
        ).end(ended)

    def aborted(self, subject: Subject, records: int, reason: str) -> None:
        """See ``Observer``."""
        self._chunk_began = 0
        if self._span is not None:
            self._span.add_event("chunk aborted", {"messaging.batch.message_count": records})

    def done(self, subject: Subject, done: Done) -> None:
        """See ``Observer``."""
        if self._span is not None:
            self._span.set_attributes(
                {
                    "factory.agent": subject.agent,
                    "factory.agent.version": subject.version,
                    "factory.records": done.records,
                    "factory.rejected": done.rejected,
                    "factory.resumed": done.resumed,
                    "factory.reused": done.reused,
                }
            )

    # Of events

    def follow(self, message: _Stamped, headers: Headers, outcome: str = "forwarded") -> Headers:
        """The headers with which an event goes on: with a span of this run in place of the one that they name, if it is followed.

        Called again for the same event it changes the outcome alone.
        """
        if self._last is not None and self._last[0] is message:
            span = self._last[1]
            span.set_attribute("factory.outcome", outcome)
            return _replaced(headers, span)
        named = [value for name, value in headers if name == TRACEPARENT]
        parent = parse_traceparent(named[0]) if len(named) == 1 else None
        if parent is None or not parent.sampled or len(self._events) >= _MOST_EVENTS or not self._share.takes(parent):
            return headers
        span = self._event(_within(parent), SpanKind.CONSUMER, outcome, self._batch_began)
        self._last = message, span
        self.followed.append((message.timestamp()[1], parent.trace_id))
        return _replaced(headers, span)

    def due(self) -> int:
        """For how many of the events that come now a trace is to be begun."""
        now = time.monotonic()
        self._due = min(self._due + self._rate * (now - (self._due_at or now)), float(_MOST_EVENTS - len(self._events)))
        self._due_at = now
        whole = int(self._due)
        self._due -= whole
        return whole

    def begin(self) -> Headers:
        """The headers of an event whose trace begins here, and now: the event is about to be produced."""
        return _replaced([], self._event(None, SpanKind.PRODUCER, "forwarded"))

    def _event(self, parent: Any, kind: SpanKind, outcome: str, began: int = 0) -> Span:
        links = [Link(self._span.get_span_context())] if self._span is not None else []
        span = self._tracer.start_span(
            f"{self._stage} event",
            context=parent if parent is not None else trace.set_span_in_context(trace.INVALID_SPAN),
            kind=kind,
            start_time=began or None,
            attributes={**self._attributes, "factory.outcome": outcome},
            links=links,
        )
        self._events.append(span)
        return span

    def settle(self, *, committed: bool) -> None:
        """The events that were followed until now are committed: their spans end; or they were dropped, and leave none."""
        self._last, self.followed = None, []
        if not self._events:
            return
        events, self._events = self._events, []
        if committed:
            now = time.time_ns()
            for span in events:
                span.end(now)
            self._committed = [span.get_span_context() for span in events[:_MOST_LINKS]]


class _Share:
    """Which events of others' traces are followed: so many a second, and where there are more, the same ones at every stage.

    They are chosen by their traces' ids, one in 2, 4, 8 …: who takes fewer takes some of those that others take.
    """

    def __init__(self) -> None:
        self._mask = 0
        self._second = 0
        self._taken = 0

    def takes(self, event: TraceContext) -> bool:
        if int(event.trace_id[-8:], 16) & self._mask:
            return False
        second = int(time.monotonic())
        if second != self._second:
            if self._taken < _EVENTS_A_SECOND // 4:
                self._mask >>= 1
            self._second, self._taken = second, 0
        if self._taken >= _EVENTS_A_SECOND:
            self._mask = (self._mask << 1 | 1) & 0xFFFF
            self._taken = _EVENTS_A_SECOND // 2
            return False
        self._taken += 1
        return True


class _WarnsOnce(SpanExporter):
    """The SDK's exporter, which says by one line that the collector doesn't take spans, and not by one for each try.

    It is loaded in a thread of its own once the first events are there: that takes three times as long as all else here.
    """

    def __init__(self) -> None:
        self._exporter: SpanExporter | None = None
        self._reason = _LastWord()
        self._sdk = logging.getLogger(_SDK)
        self._level = self._sdk.level
        self._lock = threading.Lock()
        self._warned = False
        self._loading: threading.Thread | None = None

    def load(self) -> threading.Thread:
        """Begin to load the SDK's exporter, unless somebody has: the thread that does."""
        with self._lock:
            if self._loading is None:
                logging.getLogger(_EXPORTER).addFilter(self._reason)
                self._sdk.setLevel(logging.CRITICAL)  # it tells of a full queue span by span; of its settings it has told by now
                self._loading = threading.Thread(target=self._load, name="traces", daemon=True)
                self._loading.start()
            return self._loading

    def loaded(self, patience: float) -> None:
        """Wait until what ``load`` began is done, if it did."""
        if self._loading is not None:
            self._loading.join(patience)

    def _load(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            self._exporter = OTLPSpanExporter(session=_session())
        except Exception as error:  # of a setting that it doesn't take
            self._warn(f"{type(error).__name__}: {error}")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See ``SpanExporter``."""
        self.load().join()
        if self._exporter is None:
            return SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._reason.text, result = f"{type(error).__name__}: {error}", SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._warn(self._reason.text or "it doesn't take them")
        return result

    def shutdown(self) -> None:
        """See ``SpanExporter``."""
        if self._exporter is not None:
            self._exporter.shutdown()

    def end(self, *, in_time: bool) -> None:
        """No spans follow; what is not sent in time is lost."""
        if not in_time:
            self._warn(self._reason.text or "it doesn't answer")
            self._warned = True
            self.shutdown()  # so that it tries no more
            return
        logging.getLogger(_EXPORTER).removeFilter(self._reason)
        self._sdk.setLevel(self._level)

    def _warn(self, reason: str) -> None:
        with self._lock:
            if self._warned:
                return
            self._warned = True
        log.warning("traces do not reach %s: %s; the work goes on without them", collector_address(os.environ), reason)


def _session() -> Any:
    """What the SDK's exporter asks by, unless a setting says that: for the SDK a redirect, which it doesn't follow, is success."""
    if any(name.startswith("OTEL_PYTHON_EXPORTER_OTLP_HTTP_") and name.endswith("CREDENTIAL_PROVIDER") for name in os.environ):
        return None
    import requests

    session = requests.Session()
    session.hooks["response"].append(_refuse_redirect)
    return session


def _refuse_redirect(response: Any, *_: object, **__: object) -> None:
    if 300 <= response.status_code < 400:
        response.close()
        raise UnavailableError(f"it answers {response.status_code}, a redirect: name the address that it leads to")


class _LastWord(logging.Filter):
    """Keeps what a logger said last, and lets nothing through."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.text = record.getMessage()
        return False


def _attributes(subject: Subject, topic: str) -> dict[str, str]:
    """Of all spans of a run: names, and nothing that an event or a setting holds."""
    found = {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.destination.name": topic,
        "messaging.consumer.group.name": "" if subject.window else subject.pipeline,
        "factory.pipeline": subject.pipeline,
        "factory.stage": subject.stage,
        "factory.agent": subject.agent,
        "factory.agent.version": subject.version,
        "factory.window": subject.window,
        "factory.shard": subject.shard,
    }
    return {name: value for name, value in found.items() if value}


def _named(own: SpanContext) -> TraceContext:
    return TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_flags.sampled)


def _span_context(of: TraceContext) -> SpanContext:
    return SpanContext(int(of.trace_id, 16), int(of.span_id, 16), True, TraceFlags(int(of.sampled)))


def _within(parent: TraceContext | None) -> Any:
    """The context of a span's child; without a parent one in which there is none, whatever is current."""
    return trace.set_span_in_context(NonRecordingSpan(_span_context(parent)) if parent is not None else trace.INVALID_SPAN)


def _replaced(headers: Headers, span: Span) -> Headers:
    """Headers that name a span."""
    return [*(header for header in headers if header[0] != TRACEPARENT), (TRACEPARENT, _named(span.get_span_context()).text.encode())]
