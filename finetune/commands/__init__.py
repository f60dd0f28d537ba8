"""`python -m finetune COMMAND`: a file a command, each with its options and `run(options) -> Sheet`."""
