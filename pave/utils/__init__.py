"""Files, tables, plots and processes; nothing here knows a model."""
