"""Training, Optuna studies, reports and the command line."""
