"""The subcommands of `pipeline.prepare`: one module with `run(options)` for each."""
