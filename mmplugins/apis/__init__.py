"""What the tools are made of: configs to runners, predictions to files."""
