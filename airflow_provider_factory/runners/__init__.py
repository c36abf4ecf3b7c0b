"""Where an agent of a task runs: ``process`` beside the task, ``kubernetes`` in a pod; ``base`` is what both are to the operator."""
