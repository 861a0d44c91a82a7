"""Stock transformers beside Sparrow: `python -m sparrow_llm.benchmark --help`."""
