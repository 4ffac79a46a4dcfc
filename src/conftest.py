"""The examples in docstrings: those of the modules that need PyTorch run where it is installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["bygrad/deploy/torch*"]
