"""What other people's programs call: `pipeline.Loader` and its neighbours."""
