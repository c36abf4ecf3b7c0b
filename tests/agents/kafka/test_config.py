"""Kafka settings: every key of librdkafka passes, mistyped ones are refused, secrets are never shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from factory_agents.errors import ConfigurationError, FencedError, UnavailableError
from factory_agents.kafka.config import KafkaConfig, connect, is_transient, kafka_error

SECRET = "correct horse battery staple"
SECRET_KEYS = [
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
]


class TestWhereSettingsComeFrom:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "client.properties"
        path.write_text("# written by hand\n\nbootstrap.servers=file:1\nclient.id = of the file\nlinger.ms=1\nsasl.password=a=b\n")
        return path

    def test_a_flag_wins_over_the_environment_that_over_the_file_and_that_over_defaults(self, file: Path) -> None:
        env = {"KAFKA_CONFIG_FILE": str(file)}
        defaults = {"bootstrap.servers": "default:1", "client.id": "default", "retries": 3}
        config = KafkaConfig.from_env(env, defaults=defaults)
        assert (config.bootstrap, config.values["client.id"], config.values["retries"]) == ("file:1", "of the file", "3")
        env["KAFKA_CONFIG"] = json.dumps({"bootstrap.servers": "json:1", "linger.ms": 2})
        config = KafkaConfig.from_env(env)
        assert (config.bootstrap, config.values["client.id"], config.values["linger.ms"]) == ("json:1", "of the file", "2")
        env["KAFKA_BOOTSTRAP"] = "env:1"
        assert KafkaConfig.from_env(env).bootstrap == "env:1"
        config = KafkaConfig.from_env(env, bootstrap="flag:1", overrides={"linger.ms": "3"})
        assert (config.bootstrap, config.values["linger.ms"]) == ("flag:1", "3")

    def test_a_value_may_contain_an_equals_sign(self, file: Path) -> None:
        assert KafkaConfig.from_env({"KAFKA_CONFIG_FILE": str(file)}).values["sasl.password"] == "a=b"

    def test_the_file_may_be_json(self, tmp_path: Path) -> None:
        path = tmp_path / "client.json"
        path.write_text('{"bootstrap.servers": "b:1", "socket.keepalive.enable": false, "linger.ms": 7, "client.id": null}')
        assert KafkaConfig.from_env({"KAFKA_CONFIG_FILE": str(path)}) == KafkaConfig(
            "b:1", {"socket.keepalive.enable": "false", "linger.ms": "7"}
        )

    def test_a_child_process_reads_the_same_from_the_environment_it_is_given(self, file: Path) -> None:
        config = KafkaConfig.from_env({"KAFKA_CONFIG_FILE": str(file)})
        assert KafkaConfig.from_env(config.to_env()) == config

    def test_several_names_for_the_broker_are_one(self) -> None:
        for name in ("bootstrap.servers", "metadata.broker.list", "bootstrap_servers"):
            assert KafkaConfig.from_mapping({name: "b:1"}).bootstrap == "b:1"

    def test_a_whole_number_may_have_been_written_by_what_knows_floats_alone(self) -> None:
        values = {"bootstrap.servers": "b:1", "transaction.timeout.ms": 6e4, "linger.ms": 1.5}
        assert KafkaConfig.from_mapping(values).values == {"transaction.timeout.ms": "60000", "linger.ms": "1.5"}


class TestRefused:
    @pytest.mark.parametrize(
        ("key", "near"),
        [("bootstrap.server", "bootstrap.servers"), ("sasl.pasword", "sasl.password"), ("linger", "linger.ms"), ("zzz", "")],
    )
    def test_a_mistyped_key_and_what_was_meant_is_named(self, key: str, near: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            KafkaConfig.from_mapping({key: SECRET}, where="connection 'kafka_default'")
        assert str(caught.value).startswith(f"connection 'kafka_default': unknown librdkafka key {key!r}")
        assert f"did you mean {near!r}?" in str(caught.value) or not near

    def test_no_key_of_librdkafka_however_rare(self) -> None:
        rare = {"topic.metadata.propagation.max.ms": 1, "sasl.kerberos.principal": "p", "queue.buffering.backpressure.threshold": 2}
        assert set(KafkaConfig.from_mapping({"bootstrap.servers": "b", **rare}).values) == set(rare)

    @pytest.mark.parametrize("key", ["enable.auto.commit", "isolation.level", "auto.offset.reset", "transactional.id"])
    def test_what_the_promises_rest_on(self, key: str) -> None:
        with pytest.raises(ConfigurationError, match=rf"'{key}' is set by the factory \(.*\); leave it out"):
            KafkaConfig.from_mapping({"bootstrap.servers": "b", key: "x"})

    def test_no_broker_at_all(self) -> None:
        with pytest.raises(ConfigurationError, match="KAFKA_BOOTSTRAP"):
            KafkaConfig.from_env({})

    def test_an_unreadable_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"cannot read .*/none: No such file"):
            KafkaConfig.from_env({"KAFKA_CONFIG_FILE": str(tmp_path / "none")})
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigurationError, match="is not a text file"):
            KafkaConfig.from_env({"KAFKA_CONFIG_FILE": str(tmp_path / "binary")})

    def test_a_line_that_sets_nothing_with_its_place(self, tmp_path: Path) -> None:
        path = tmp_path / "client.properties"
        path.write_text(f"linger.ms=1\nsasl.password {SECRET}\n")
        with pytest.raises(ConfigurationError, match=r"client\.properties:2: expected key=value$"):
            KafkaConfig.from_env({"KAFKA_CONFIG_FILE": str(path)})

    @pytest.mark.parametrize("text", [f'{{"sasl.password": "{SECRET}"', f'["{SECRET}"]', SECRET])
    def test_json_that_is_none_without_quoting_it(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="expected a JSON object") as caught:
            KafkaConfig.from_env({"KAFKA_CONFIG": text, "KAFKA_BOOTSTRAP": "b"})
        assert SECRET not in str(caught.value)

    def test_a_value_that_librdkafka_cannot_use(self) -> None:
        with pytest.raises(ConfigurationError, match=r"Kafka client for b:1: .*socket\.timeout\.ms"):
            KafkaConfig("b:1", {"socket.timeout.ms": "soon"}).producer("t")

    @pytest.mark.parametrize("value", ["", "soon", "60000.0", "1e4", "-1", 1.5])
    def test_what_is_no_number_where_the_factory_reads_it_too(self, value: object) -> None:
        for key in ("transaction.timeout.ms", "message.max.bytes"):
            with pytest.raises(ConfigurationError, match=rf"Kafka at b:1: '{key}': expected a whole number, got '{value}'"):
                KafkaConfig.from_mapping({"bootstrap.servers": "b:1", key: value})


class TestSecrets:
    @pytest.mark.parametrize("key", SECRET_KEYS)
    def test_are_masked_however_the_settings_are_shown(self, key: str) -> None:
        config = KafkaConfig.from_mapping({"bootstrap.servers": "b:1", "client.id": "shown", key: SECRET})
        for text in (repr(config), str(config), f"{config}", f"{[config]}"):
            assert SECRET not in text
            assert f"{key}=***" in text
            assert "client.id=shown" in text

    @pytest.mark.parametrize("key", [*SECRET_KEYS, "sasl.pasword", "enable.auto.commit"])
    def test_are_in_no_error(self, key: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            KafkaConfig.from_mapping({"bootstrap.servers": "b:1", key: SECRET, "no.such.key": SECRET}).producer("t")
        assert SECRET not in str(caught.value)


class TestClients:
    def test_take_what_the_factory_must_set_over_everything_else(self) -> None:
        seen: dict[str, object] = {}
        config = KafkaConfig("b:1", {"fetch.wait.max.ms": "7"})
        assert config.client(transaction_timeout_ms=5)["transaction.timeout.ms"] == 5
        seen.update(config.client())
        assert seen["fetch.wait.max.ms"] == "7"

    def test_are_made_without_a_connection(self) -> None:
        config = KafkaConfig("127.0.0.1:1")
        config.consumer().close()
        config.producer("t")
        config.admin()

    @pytest.mark.slow
    def test_that_cannot_connect_leave_it_to_the_next_step_to_say_so(self) -> None:
        connect(KafkaConfig("127.0.0.1:1").producer("id"), "nothing")


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (KafkaError._AUTHENTICATION, ConfigurationError, "authentication failed"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, ConfigurationError, "not allowed on this topic"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, ConfigurationError, "unknown topic"),
        (KafkaError.TOPIC_EXCEPTION, ConfigurationError, "no name that a topic can have"),
        (KafkaError._FENCED, FencedError, "newer attempt"),
        (KafkaError._TRANSPORT, UnavailableError, "_TRANSPORT"),
    ],
)
def test_an_error_of_kafka_says_what_was_being_done_and_whether_trying_again_helps(code: int, kind: type, text: str) -> None:
    error = kafka_error(KafkaError(code), "reading t-0")
    assert isinstance(error, kind)
    assert str(error).startswith("reading t-0: ")
    assert text in str(error)
    assert error.retriable == (kind is not ConfigurationError)


def test_a_lost_connection_passes_and_a_wrong_password_does_not() -> None:
    assert is_transient(KafkaError(KafkaError._TRANSPORT))
    assert is_transient(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    assert is_transient(KafkaError(KafkaError.NOT_COORDINATOR))
    assert not is_transient(KafkaError(KafkaError._AUTHENTICATION))
