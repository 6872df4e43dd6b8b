"""From a configuration to a run, its log, its figures and its verdict."""
