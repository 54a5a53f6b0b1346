"""What the command line does, one command or group of commands a file; `gateway/cli.py` names their options."""
