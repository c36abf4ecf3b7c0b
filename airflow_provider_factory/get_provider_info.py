"""What Airflow's provider manager asks at start: modules, decorators, plugins, links and the ``[factory]`` configuration."""

from __future__ import annotations

from typing import Any

__all__ = ["get_provider_info"]

_INTEGRATION = "Software factory"
_PACKAGE = "airflow_provider_factory"


def _option(
    description: str, *, type_: str = "string", default: str = "", example: str | None = None, sensitive: bool = False
) -> dict[str, Any]:
    option = {"description": description, "version_added": "0.1.0", "type": type_, "example": example, "default": default}
    return {**option, "sensitive": True} if sensitive else option


_OPTIONS: dict[str, dict[str, Any]] = {
    "runner": _option(
        "Where agents run: ``process`` (a process beside the task, on the worker) or ``kubernetes`` (a pod of its own). "
        "A task's ``runner`` argument wins.\n",
        default="process",
        example="kubernetes",
    ),
    "image": _option(
        "Image of the agents' pods, unless the task or its pod template names one.\n",
        default="factory-agents:0.1.0",
        example="registry.example.com/factory-agents:0.1.0",
    ),
    "namespace": _option("Namespace of the agents' pods; empty: the Kubernetes connection's, or the worker's own.\n", example="agents"),
    "credentials": _option(
        "Where the pods' credentials come from: ``secret`` (the existing one that ``agent_secret`` names), ``connections`` (Airflow's, in "
        "a Secret that belongs to the pod and is deleted with it) or ``none`` (pod templates bring them).\n",
        default="secret",
        example="connections",
    ),
    "agent_secret": _option(
        "Name of an existing Kubernetes Secret whose keys become the agent's environment: KAFKA_BOOTSTRAP, KAFKA_CONFIG, "
        "DATABASE_URL. It must be in the pods' namespace.\n",
        default="factory-agent",
        example="team-a-agents",
    ),
    "kafka_conn_id": _option("Airflow connection (type kafka) of the cluster that holds the pipeline's topics.\n", default="kafka_default"),
    "database_conn_id": _option(
        "Airflow connection (type postgres) given to the built-in agents as DATABASE_URL where it exists; other agents get a "
        "database when their task names one.\n",
        default="postgres_default",
    ),
    "registry_conn_id": _option(
        "Airflow connection (type schema_registry) given to agents whose topics have a codec, where it exists.\n",
        default="schema_registry_default",
    ),
    "cluster": _option(
        "Alias of the Kafka cluster in asset URIs and OpenLineage namespaces: ``kafka://<cluster>/<topic>``.\n",
        default="main",
        example="eu1",
    ),
    "database": _option(
        "Alias of the database in the asset URIs of tables: ``postgres://<database>:5432/<database>/<schema>/<table>``.\n",
        default="main",
        example="warehouse",
    ),
    "asset_partitions": _option(
        "Whether asset events carry the interval's start as their partition key (Airflow 3.3 and newer). An event with a key starts only "
        "DAGs whose schedule is about partitions, so it is for those who have such DAGs.\n",
        type_="boolean",
        default="False",
        example="True",
    ),
    "prefix": _option(
        "First part of transactional ids, and of the ledger topic's name ``<prefix>.ledger``; one per deployment on a shared cluster.\n",
        default="factory",
        example="factory-staging",
    ),
    "keep_windows": _option(
        "For how long the ledger remembers what was planned and done: ``retention`` (as long as the pipeline's topics keep records, and a "
        "margin), a time such as ``45 d``, or ``forever``. Older windows are forgotten, and running them again is refused.\n",
        default="retention",
        example="45 d",
    ),
    "retry_delay": _option(
        "Seconds between a task's tries in DAGs that use ``airflow_provider_factory.settings.retry_delay``; short ones make a "
        "failing ``airflow dags test`` end soon.\n",
        type_="float",
        default="300",
        example="5",
    ),
    "deadlines": _option(
        "Whether DAGs that use ``airflow_provider_factory.notifications.late_after`` get their deadline alert; off for tests that call "
        "``dag.test()``, which fails on any deadline (Airflow #73428).\n",
        type_="boolean",
        default="True",
        example="False",
    ),
    "alerts_token": _option(
        "Token that Alertmanager presents when it posts to ``/factory-alerts/`` of the API server; empty: nobody may. It can come from "
        "``alerts_token_cmd`` or ``alerts_token_secret`` too.\n",
        sensitive=True,
    ),
    "alerts_slack": _option(
        "Airflow connection that those alerts are sent to: of type slackwebhook, or with ``alerts_channel`` of type slack.\n",
        default="slack_default",
    ),
    "alerts_channel": _option("Channel that Slack's API posts those alerts to.\n", example="#factory"),
    "runbooks_url": _option(
        "Address of the page whose sections the alerting rules name as their runbooks; empty: no link.\n",
        example="https://git.example.com/factory/blob/main/docs/runbooks.md",
    ),
    "stop_grace": _option(
        "Seconds that an agent process has to finish or abort its chunk after SIGTERM, before SIGKILL.\n",
        type_="float",
        default="30",
        example="10",
    ),
    "topic_url": _option(
        "URL of a topic in your Kafka console, for the links on a task: ``{topic}`` and ``{cluster}`` are filled in; empty: no link.\n",
        example="https://kafka.example.com/clusters/{{cluster}}/topics/{{topic}}",
    ),
    "pod_url": _option(
        "URL of a pod in your cluster's console, for the link on a task: ``{namespace}`` and ``{pod}`` are filled in; empty: no link.\n",
        example="https://k8s.example.com/#/pod/{{namespace}}/{{pod}}",
    ),
}


_LINKS = ("AgentRunLink", "InputTopicLink", "OutputTopicLink", "PodLink", "ReportLink")


def get_provider_info() -> dict[str, Any]:
    """The provider's description by Airflow's ``provider_info.schema.json``; imports nothing of Airflow."""
    return {
        "package-name": "airflow-provider-factory",
        "name": _INTEGRATION,
        "description": "Streaming agents on Kafka as Airflow tasks: bounded windows, exact across retries, as processes or pods.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://kafka.apache.org/documentation/#semantics",
                "tags": ["software"],
            }
        ],
        "operators": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    f"{_PACKAGE}.operators.{name}"
                    for name in (
                        "agent_pod",
                        "deploy_agent",
                        "kafka_agent",
                        "preview",
                        "replay",
                        "rollout",
                        "temporal_pipeline",
                        "validation",
                        "window",
                    )
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [f"{_PACKAGE}.sensors.{name}" for name in ("consumer_lag", "rollout", "window_closed")],
            }
        ],
        "triggers": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    f"{_PACKAGE}.triggers.{name}"
                    for name in ("agent_pod", "consumer_lag", "rollout", "temporal_pipeline", "topic_ready", "window_closed")
                ],
            }
        ],
        "hooks": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    f"{_PACKAGE}.hooks.{name}"
                    for name in ("database", "google", "iceberg", "kafka", "model", "schema_registry", "snowflake")
                ],
            }
        ],
        "connection-types": [
            {"connection-type": "schema_registry", "hook-class-name": f"{_PACKAGE}.hooks.schema_registry.SchemaRegistryHook"},
        ],
        "task-decorators": [{"name": "kafka_agent", "class-name": f"{_PACKAGE}.decorators.kafka_agent.kafka_agent_task"}],
        "extra-links": [f"{_PACKAGE}.links.{name}" for name in _LINKS],
        "plugins": [
            {"name": "factory_alerts", "plugin-class": f"{_PACKAGE}.plugins.alerts.FactoryAlertsPlugin"},
            {"name": "factory_page", "plugin-class": f"{_PACKAGE}.plugins.page.FactoryPagePlugin"},
            {"name": "factory_pools", "plugin-class": f"{_PACKAGE}.plugins.pools.PoolsPlugin"},
            {"name": "factory_preload", "plugin-class": f"{_PACKAGE}.plugins.preload.PreloadPlugin"},
        ],
        "notifications": [f"{_PACKAGE}.notifications.FactoryNotifier"],
        "config": {
            "factory": {
                "description": "How the operators of ``airflow-provider-factory`` run agents. Every option may be set by its environment "
                "variable ``AIRFLOW__FACTORY__<OPTION>``.\n",
                "options": _OPTIONS,
            }
        },
    }
