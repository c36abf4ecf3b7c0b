"""The transform of agents over models: takes the answers that are logged, asks for the others side by side, checks what comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from factory_agents.errors import AgentError, ConfigurationError, FactoryError, StoppedError, UnavailableError
from factory_agents.inference.answers import Answer, AnswerLog, Said, answer_key, decode_answer, decode_said, subject_hash
from factory_agents.inference.batches import BatchApi
from factory_agents.inference.client import (
    Client,
    ModelRefusedError,
    ModelUnavailableError,
    RateLimitedError,
    Reply,
    one_line,
    open_client,
    read_key,
)
from factory_agents.inference.http import EndpointClient
from factory_agents.inference.limits import Limits
from factory_agents.inference.money import BudgetError, Usage
from factory_agents.inference.params import Asking
from factory_agents.inference.structured import InvalidAnswer
from factory_agents.kafka.messages import Message
from factory_agents.protocol import AgentRun, Counts
from factory_agents.reject import Reject
from factory_agents.runtime.agents import Output, decode_event
from factory_agents.runtime.dependencies import OUTAGES, Dependency, DependencyError, InterruptedBatchError
from factory_agents.runtime.numbers import Digits
from factory_agents.runtime.side_by_side import Coroutines, Failure, Suspects
from factory_agents.telemetry import fields

__all__ = ["InferTransform", "Whose"]

log = logging.getLogger(__name__)

_PER_CALL = 4
"""Events given at once for each call that is made side by side: the last calls of a batch wait for the slowest."""
_MOST_IN_VAIN = 2
"""Rounds in which the model failed for all that was left; before the next one it is asked a question that no event is to blame for."""
_MOST_IN_BATCH = 20_000
_FIRST_LOOK, _RAREST_LOOK = 0.5, 60.0
"""Seconds between two looks at a provider's batch."""
_LONGEST_ANSWER = 100_000
_TOKENS_AT_FIRST, _LETTERS_A_TOKEN = 100, 4
_NOTHING = Usage()
_REPAIR = "That is not the answer that was asked for: {fault}. Answer again, with nothing but the JSON object."


@dataclass(frozen=True)
class Whose:
    """For whom is asked: ``spender`` is the pipeline and stage, one of so many ``shards``.

    ``again``: answers of earlier runs don't count, those of ``run`` do. ``live``: it is the runtime that waits while the model is away.
    """

    spender: str = "live"
    run: str = ""
    shards: int = 1
    again: bool = False
    live: bool = True

    @classmethod
    def of(cls, run: AgentRun | None) -> Whose:
        """A run's, or a live agent's."""
        if run is None:
            return cls()
        again = run.rerun == "ask_again"
        name = run.run_id or (uuid.uuid4().hex if again else "")
        return cls(f"{run.pipeline}/{run.stage}", name, run.shard.of, again, live=False)


@dataclass
class _Dialogue:
    """What was said about one event so far, and what it took; ``text`` is the model's last answer, ``fault`` what is wrong with it."""

    event: Mapping[str, Any]
    turns: list[str]
    text: str = ""
    fault: str = ""
    calls: int = 0
    usage: Usage = field(default_factory=Usage)


_Known: TypeAlias = "dict[bytes, Said | Reject]"
"""What was answered to questions, by their keys."""
_Missing: TypeAlias = "dict[bytes, tuple[dict[str, Any], list[Any]]]"
"""Questions without an answer, by their keys: an event, and what of it goes into the prompt."""


class InferTransform:
    """See ``Transform``. An event's answer goes into one field of it and nowhere else, whatever the answer says."""

    name = "infer"
    version = "1"
    stateful = False

    def __init__(self, asking: Asking, whose: Whose, client: Client | None = None) -> None:
        settings = asking.settings
        self.identity: dict[str, Any] = asking.identity
        self.at_once = _MOST_IN_BATCH if settings.batch and not whose.live else _PER_CALL * settings.concurrency
        self.into = settings.into
        self.log = AnswerLog(asking.question, whose.spender, daily=settings.budget.daily)
        self._asking, self._settings, self._whose = asking, settings, whose
        self._question = asking.question
        self._read = asking.prompt.reader(asking.masked)
        self._digits = Digits()
        self._client = client
        self._dependency = Dependency(f"model {settings.model!r}", errors=OUTAGES, busy=(RateLimitedError,), retries=settings.retries)
        self._suspects, self._in_vain = Suspects(), 0
        self._limits = Limits(settings.requests_per_minute, settings.tokens_per_minute, shards=whose.shards)
        self._lanes: Coroutines | None = None
        self._completion_tokens = float(settings.parameters.get("max_tokens") or _TOKENS_AT_FIRST)
        self._answered_at = time.monotonic()
        self._ended_by: FactoryError | None = None
        self._dialogues: dict[bytes, _Dialogue] = {}
        self._named: set[str] = set()
        """Batches of which the provider can't know yet."""
        self._submitted: set[str] = set()
        """Batches that this attempt has submitted, by the provider's ids."""
        self.seconds: list[float] = []
        """How long each call took."""

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """See ``Transform.compare``."""

    def process(self, messages: Sequence[Message]) -> list[Output]:
        """See ``Transform.process``. Raises BudgetError, UnavailableError where the model is away for too long."""
        outputs: list[Output] = [None] * len(messages)
        values = [message.value() for message in messages]
        decode, read, question = self._digits.decoder(values), self._read, self._question
        events: dict[int, dict[str, Any]] = {}
        keys: dict[int, bytes] = {}
        for n, value in enumerate(values):
            try:
                event = events[n] = decode_event(value, decode)
            except Reject as reject:
                outputs[n] = reject
            else:
                keys[n] = answer_key(question, read(event))
        known = self._logged(list(keys.values()))
        missing: _Missing = {key: (events[n], read(events[n])) for n, key in keys.items() if key not in known}
        try:
            if missing and self._settings.batch and not self._whose.live:
                self._take_batches(missing, known)
            if missing:
                self._ask_all(missing, known, keys, events, outputs)
        finally:
            for key in list(self._dialogues):  # wrong answers for which no better one came: they were paid for
                self._log_said(key)
        for n, event in events.items():
            outputs[n] = self._output(event, known[keys[n]])
        return outputs

    def _logged(self, keys: Sequence[bytes]) -> _Known:
        """Answers that are known and count."""
        found = self.log.find(keys)
        if not (self._whose.again or self._settings.repair):
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                return {key: said for key, value in found.items() if (said := decode_said(value)).is_there}
        answers = {key: decode_answer(value) for key, value in found.items()}
        return {key: Said(answer.text, answer.fault) for key, answer in answers.items() if self._counts(answer)}

    def _counts(self, answer: Answer) -> bool:
        if self._whose.again and answer.run != self._whose.run:
            return False
        return bool(answer.text or answer.fault) and not (self._settings.repair and answer.fault and answer.calls == 1)

    def _output(self, event: dict[str, Any], said: Said | Reject) -> Output:
        if isinstance(said, Reject):
            return said
        if said.fault:
            return Reject(f"{said.fault}; the model answered: {said.text}", rule="invalid_output")
        event[self.into] = msgspec.Raw(said.text.encode())
        return self._digits.encode(event)

    def _ask_all(
        self,
        missing: _Missing,
        known: _Known,
        keys: Mapping[int, bytes],
        events: Mapping[int, dict[str, Any]],
        outputs: list[Output],
    ) -> None:
        """Have every question answered. A live agent's answers so far are told where the model is away (InterruptedBatchError)."""
        while missing:
            outage = self._ask_neutrally() if self._in_vain >= _MOST_IN_VAIN else None
            if outage is None:
                outage = self._ask_once(missing, known)
            for key in known.keys() & missing.keys():
                del missing[key]
            if self._ended_by is not None:
                raise self._ended_by
            if outage is None:
                self._in_vain = 0
                continue
            self._in_vain += 1
            outage.dependency.trip()
            seconds = outage.dependency.wait_seconds
            if self._whose.live:
                first = min(n for n in events if keys[n] in missing)
                done = [self._output(events[n], known[keys[n]]) if n in events else outputs[n] for n in range(first)]
                raise InterruptedBatchError(str(outage), done, seconds) from outage
            self._wait(outage, seconds)
        self._suspects = Suspects()

    def _ask_neutrally(self) -> DependencyError | None:
        """Ask about an event that has nothing in it; the error where the model fails for that, too: it is away, and no event is bad.

        Where only events are left for which it fails, nothing else tells these from an outage.
        """
        values: list[Any] = [None] * len(self._asking.prompt.fields)
        key = answer_key(self._question, values)
        (outcome,) = self._side_by_side([(key, ({}, values))])
        return outcome.error if isinstance(outcome, Failure) else None

    def _ask_once(self, missing: _Missing, known: _Known) -> DependencyError | None:
        """Ask every question, and what failed a few times more; the outage that left some without an answer."""
        questions = list(missing.items())
        outage = None
        for (key, _), outcome in zip(questions, self._side_by_side(questions), strict=True):
            if isinstance(outcome, (Said, Reject)):
                known[key] = outcome
            elif isinstance(outcome, Failure):
                verdict = self._suspects.judge(key, outcome)
                if verdict == "bad":
                    known[key] = self._log_said(key) or _unavailable(outcome.error)
                elif verdict == "outage":
                    outage = outcome.error
        return outage

    def _side_by_side(self, questions: Sequence[tuple[bytes, tuple[dict[str, Any], list[Any]]]]) -> list[Any]:
        """What became of each question."""
        if self._lanes is None:
            self._lanes = Coroutines(self._settings.concurrency, None, self._dependency)
        return self._lanes.run(len(questions), lambda n: self._answer(questions[n][0], *questions[n][1]))

    def _wait(self, outage: DependencyError, seconds: float) -> None:
        away = time.monotonic() - self._answered_at
        if away > self._settings.patience:
            raise outage
        log.warning("waiting for the model", extra=fields(model=self._settings.model, reason=str(outage), seconds=round(seconds, 1)))
        if self.log.left.wait(seconds):
            raise StoppedError("agent 'infer': asked to stop while the model was away; a retry resumes")

    def _may_ask(self, more: Usage = _NOTHING) -> bool:
        """Whether one more call may be made, or several that will take so much ``more``: nobody has stopped it, and there is money left."""
        if self._ended_by is None:
            answers, shards = self.log, self._whose.shards
            answers.turn_day()
            cost, tokens = self._settings.prices.cost(more), more.prompt + more.completion
            window, today = answers.spent_on_window.plus(cost, tokens), answers.spent_today.plus(cost, tokens)
            over = self._settings.budget.exceeded(window, today, answers.spent_today_before, shards)
            if over:
                self._ended_by = BudgetError(
                    f"agent 'infer': {over}; what was answered is kept, and a later run, or one with a higher budget, goes on from there"
                )
            elif answers.left.is_set():
                self._ended_by = StoppedError("agent 'infer': asked to stop; a retry resumes")
        return self._ended_by is None

    async def _answer(self, key: bytes, event: dict[str, Any], values: list[Any]) -> Said | Reject | None:
        """One question's answer, which is logged; None where nothing is asked any more. Raises DependencyError."""
        try:
            return await self._asked(key, event, values)
        except ModelRefusedError as error:
            return self._log_said(key) or Reject(f"the model takes this question not: {error}", rule="refused_by_model")
        except DependencyError:
            raise
        except FactoryError as error:
            self._ended_by = self._ended_by or error
        except Exception as error:
            self._ended_by = self._ended_by or AgentError(f"agent 'infer': {type(error).__name__}: {error}")
        return None

    async def _asked(self, key: bytes, event: dict[str, Any], values: list[Any]) -> Said | None:
        """Where a call fails, the next try goes on with the dialogue: an answer that was paid for is not asked for again."""
        prompt = self._asking.prompt
        said = self._dialogues.setdefault(key, _Dialogue(event, [prompt.render(values)]))
        while True:
            reply = await self._reply(prompt.system, said.turns)
            if reply is None:
                return None
            if self._heard(said, reply) or not self._may_ask():
                return self._log_said(key)

    def _heard(self, said: _Dialogue, reply: Reply) -> bool:
        """Take a reply into the dialogue; false where there is to be another question."""
        said.calls, said.usage = said.calls + 1, said.usage.plus(reply.usage)
        said.text, said.fault = self._checked(reply.text)
        if not said.fault or said.calls > self._settings.repair:
            return True
        said.turns = [said.turns[0], said.text, _REPAIR.format(fault=said.fault)]
        return False

    def _checked(self, text: str) -> tuple[str, str]:
        """An answer as it is logged, and what is wrong with it."""
        fault = ""
        try:
            text = self._asking.output.check(text).decode()
        except InvalidAnswer as invalid:
            fault, text = str(invalid), text.encode(errors="replace").decode()  # it may hold half of a letter
        if len(text) > _LONGEST_ANSWER:
            return text[:_LONGEST_ANSWER], fault or f"an answer of {len(text):,} letters"
        return text, fault

    def _log_said(self, key: bytes) -> Said | None:
        """Log what the model said last, and ask no more; None where it has answered nothing."""
        said = self._dialogues.pop(key, None)
        if said is None or not said.calls:
            return None
        settings, usage = self._settings, said.usage
        answer = Answer(
            at=int(time.time() * 1000),
            text=said.text,
            fault=said.fault,
            by=self._whose.spender,
            run=self._whose.run,
            calls=said.calls,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            cost=settings.prices.cost(usage),
            prompt=self._asking.prompt.label,
            model=settings.model,
            subject=subject_hash(said.event.get(settings.subject)) if settings.subject else "",
        )
        self.log.add(key, answer)
        return Said(said.text, said.fault)

    async def _reply(self, system: str, turns: Sequence[str]) -> Reply | None:
        """What the model says, within its limits; None where nothing may be asked any more."""
        estimated = sum(map(len, (system, *turns))) / _LETTERS_A_TOKEN + self._completion_tokens
        while True:
            await self._limits.turn(estimated)
            if not self._may_ask():
                return None
            client, began = self._opened(), time.monotonic()
            try:
                with self._dependency:
                    async with asyncio.timeout(self._settings.timeout):
                        reply = await client.ask(system, turns)
            except RateLimitedError as limited:
                self._limits.used(estimated, 0)
                self._hold(limited)
                continue
            self._answered_at = time.monotonic()
            self.seconds.append(self._answered_at - began)
            self._limits.used(estimated, reply.usage.prompt + reply.usage.completion)
            self._completion_tokens += (reply.usage.completion - self._completion_tokens) / 10
            return reply

    def _hold(self, limited: RateLimitedError) -> None:
        away = time.monotonic() - self._answered_at + limited.seconds
        if away <= self._settings.patience:
            self._limits.hold(limited.seconds)
            return
        self._dependency.trip()
        said = f"{self._dependency.name}: {limited}, and is waited for no longer than {self._settings.patience:g} s (patience)"
        error = DependencyError(said, self._dependency, called=False)
        if not self._whose.live:
            self._ended_by = self._ended_by or error
        raise error

    def _opened(self) -> Client:
        """The client, made when it is needed: what is logged takes none, and no key."""
        if self._client is None:
            settings = self._settings
            self._client = open_client(
                settings.model,
                endpoint=settings.endpoint,
                key_variable=settings.api_key_env,
                schema=self._asking.output.schema,
                settings=settings.parameters,
                timeout=settings.timeout,
            )
        return self._client

    def _take_batches(self, missing: _Missing, known: _Known) -> None:
        """Have questions answered by the provider's batch API, whoever submitted them; what a batch leaves unanswered stays missing.

        Which batch a question is in is committed before the provider hears of it: whoever comes after a kill finds the batch by its name.
        Raises UnavailableError where the answers take longer than this attempt waits.
        """
        batches, waiting = self._batches(), self._in_batches(missing)
        until, pause = time.monotonic() + self._settings.patience, _FIRST_LOOK
        while waiting:
            state = "it isn't over yet"
            for name, keys in list(waiting.items()):
                try:
                    if self._look_at(batches, name, keys, missing, known):
                        del waiting[name]
                except (ModelUnavailableError, RateLimitedError) as error:
                    state = str(error)
            if not waiting:
                return
            if time.monotonic() > until:
                raise UnavailableError(
                    f"agent 'infer': {sum(map(len, waiting.values())):,} questions are in a batch of model {self._settings.model!r}, and "
                    f"{state}; a retry takes the answers: give the task retries, and a delay that suits the provider"
                )
            if self.log.left.wait(pause):
                raise StoppedError("agent 'infer': asked to stop while a batch was under way; a retry takes its answers")
            pause = min(_RAREST_LOOK, pause * 2)

    def _in_batches(self, missing: _Missing) -> dict[str, list[bytes]]:
        """The questions by the batch that they are in; those that are in none are given one, of which the provider doesn't know yet."""
        waiting: dict[str, list[bytes]] = {}
        fresh = set(missing)
        for key, value in self.log.find(list(missing)).items():
            pending = decode_answer(value)
            if pending.batch and (not self._whose.again or pending.run == self._whose.run):
                waiting.setdefault(pending.batch, []).append(key)
                fresh.discard(key)
        if fresh:
            self._check_batch_budget([missing[key] for key in fresh])
            waiting[self._name_batch(missing, sorted(fresh))] = sorted(fresh)
        return waiting

    def _check_batch_budget(self, questions: Sequence[tuple[dict[str, Any], list[Any]]]) -> None:
        prompt = self._asking.prompt
        letters = sum(len(prompt.system) + len(prompt.render(values)) for _, values in questions)
        if not self._may_ask(Usage(letters // _LETTERS_A_TOKEN, completion=round(self._completion_tokens * len(questions)))):
            raise self._ended_by or StoppedError("agent 'infer': asked to stop; a retry resumes")

    def _name_batch(self, missing: _Missing, keys: Sequence[bytes]) -> str:
        """Log that these questions are in a batch that is about to be submitted; its name, once that is committed."""
        name = uuid.uuid4().hex
        for key in keys:
            self._log_pending(key, name, missing[key][0])
        if not self.log.wait_committed():
            raise StoppedError("agent 'infer': asked to stop before a batch was submitted; a retry submits it")
        self._named.add(name)
        return name

    def _log_pending(self, key: bytes, batch: str, event: Mapping[str, Any]) -> None:
        settings = self._settings
        subject = subject_hash(event.get(settings.subject)) if settings.subject else ""
        by, run, label = self._whose.spender, self._whose.run, self._asking.prompt.label
        at = int(time.time() * 1000)
        self.log.add(key, Answer(at, "", by=by, run=run, calls=0, prompt=label, model=settings.model, subject=subject, batch=batch))

    def _look_at(self, batches: BatchApi, name: str, keys: Sequence[bytes], missing: _Missing, known: _Known) -> bool:
        """Submit a batch that the provider doesn't have, or take the answers of one that is over; whether it is."""
        place = self._question + b"|" + name.encode()
        logged = self.log.find([place]).get(place)
        batch = None if name in self._named else batches.find(name, decode_answer(logged).batch if logged else "")
        if batch is None or (batch.status == "failed" and batch.id not in self._submitted):
            prompt = self._asking.prompt
            questions = {_id(key): (prompt.system, prompt.render(missing[key][1])) for key in keys}
            self._named.discard(name)
            batch = batches.submit(name, questions)
            self._submitted.add(batch.id)
            log.info("batch submitted", extra=fields(model=self._settings.model, batch=batch.id, questions=len(questions)))
            self._log_pending(place, batch.id, {})
        if batch.status == "failed":
            raise ConfigurationError(
                f"model {self._settings.model!r}: the provider does not take batch {batch.id}: {one_line(str(batch.errors))}"
            )
        if not batch.is_over:
            log.info(batch.progress, extra=fields(model=self._settings.model))
            return False
        replies = batches.replies(batch)
        for key in keys:
            reply = replies.get(_id(key))
            if isinstance(reply, ModelRefusedError):
                known[key] = Reject(f"the model takes this question not: {reply}", rule="refused_by_model")
                del missing[key]
            elif isinstance(reply, Reply):
                event, values = missing[key]
                said = self._dialogues[key] = _Dialogue(event, [self._asking.prompt.render(values)])
                if self._heard(said, reply) and (answer := self._log_said(key)) is not None:
                    known[key] = answer
                    del missing[key]
        return True

    def _batches(self) -> BatchApi:
        settings, key = self._settings, read_key(self._settings.api_key_env)
        client = EndpointClient(settings.model, settings.endpoint, key, self._asking.output.schema, settings.parameters)
        return BatchApi(settings.model, settings.endpoint, key, client, settings.timeout)

    def finish(self, counts: Counts) -> dict[str, Any]:
        """What was asked of whom; figures are in the counts."""
        return {"model": self._settings.model, "revision": self._settings.revision, "prompt": self._asking.prompt.label}

    def close(self) -> None:
        """See ``Transform.close``."""
        if self._lanes is not None:
            if (client := self._client) is not None:
                self._lanes.run(1, lambda _: client.close())
            self._lanes.close()
        self.log.close()


def _id(key: bytes) -> str:
    """What a question is called in a batch."""
    return key.rpartition(b"|")[2].decode()


def _unavailable(error: DependencyError) -> Reject:
    return Reject(f"{error} (while it answered for other events)", rule="unavailable")
