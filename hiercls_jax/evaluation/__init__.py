"""What adaptation did to one set of predictions: of a training run, or of tables in files."""
