"""The command line: options, errors and exit statuses."""
