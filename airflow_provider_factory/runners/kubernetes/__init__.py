"""An agent's pod: its manifest, its log, why it failed, and what it comes to."""
