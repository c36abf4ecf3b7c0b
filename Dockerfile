# The images of the project; a classic `docker build` is enough.
#   docker build --target agent -t factory-agents:0.1.0 .          what agents' pods run: the SDK with all of its extras, no Airflow
#     with --build-arg AGENT_REQUIREMENTS=agent-slim.txt          without models, SQL over windows, and warehouses but PostgreSQL
#   docker build --target project -t my-agents:1 .                 the same with this repository's include/, which its DAGs read
#   docker build --target airflow -t airflow-factory:0.1.0 .       Airflow with the provider: scheduler, triggerer, workers
# Your own agents: FROM factory-agents:0.1.0, COPY my_agent.py /opt/agents/, and name them my_agent:function in the DAG.
# More libraries: USER 0, RUN pip install …, USER 65532:65532.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# The tools that build, which no image keeps. Stages stand in the order of need: a classic build runs all that come before its target.
FROM ${PYTHON_IMAGE} AS tools
WORKDIR /build
COPY requirements/tools.txt requirements/
RUN python -m venv /tools && /tools/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/tools.txt
ENV PATH=/tools/bin:$PATH

FROM tools AS agent-wheel
COPY agents agents
RUN uv build --quiet --no-build-isolation --python /tools/bin/python --wheel --out-dir /wheels agents

# What is installed comes before our own sources: a change of them downloads nothing again.
FROM tools AS agent-venv
ARG AGENT_REQUIREMENTS=agent.txt
COPY requirements/${AGENT_REQUIREMENTS} requirements/agent.txt
RUN python -m venv --without-pip /opt/factory \
    && uv pip install --quiet --no-cache --compile-bytecode --python /opt/factory --require-hashes --requirement requirements/agent.txt
COPY --from=agent-wheel /wheels /wheels
RUN uv pip install --quiet --no-cache --compile-bytecode --python /opt/factory --no-deps /wheels/factory_agents-*.whl

# Unprivileged by number (runAsNonRoot can tell), and at ease with a read-only root: it writes to /tmp only. The base's pip installs to
# where the agents look.
FROM ${PYTHON_IMAGE} AS agent
ENV PATH=/opt/factory/bin:$PATH PIP_PYTHON=/opt/factory PYTHONPATH=/opt/agents PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
COPY --from=agent-venv /opt/factory /opt/factory
WORKDIR /opt/agents
USER 65532:65532
ENTRYPOINT ["factory"]
CMD ["--help"]

FROM agent AS project
COPY include /opt/agents/include
ENV FACTORY_INCLUDE=/opt/agents/include

FROM tools AS airflow-venv
COPY requirements/airflow.txt requirements/
RUN python -m venv --without-pip /opt/factory \
    && uv pip install --quiet --no-cache --compile-bytecode --python /opt/factory --require-hashes --requirement requirements/airflow.txt
COPY --from=agent-wheel /wheels /wheels
COPY pyproject.toml README.md LICENSE ./
COPY airflow_provider_factory airflow_provider_factory
RUN uv build --quiet --no-build-isolation --python /tools/bin/python --wheel --out-dir /wheels . \
    && uv pip install --quiet --no-cache --compile-bytecode --python /opt/factory --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE} AS airflow
# A user's name, which Airflow wants for all that it starts: the number has none, and a cluster may choose another.
ENV PATH=/opt/factory/bin:$PATH PIP_PYTHON=/opt/factory PYTHONUNBUFFERED=1 HOME=/opt/airflow USER=airflow \
    AIRFLOW_HOME=/opt/airflow AIRFLOW__CORE__LOAD_EXAMPLES=False
COPY --from=airflow-venv /opt/factory /opt/factory
WORKDIR /opt/airflow
# As in the official image, whose chart calls /entrypoint: `bash -c …` and the like as they are, all else as a command of Airflow.
# hadolint ignore=SC2016
RUN mkdir logs /run/factory && chown 50000:0 . logs /run/factory && chmod 775 . logs \
    && printf '%s\n' '#!/bin/sh' 'case $1 in airflow | bash | python | sh) exec "$@" ;; esac' 'exec airflow "$@"' >/entrypoint \
    && chmod 755 /entrypoint
USER 50000:0
ENTRYPOINT ["/entrypoint"]
CMD ["version"]
