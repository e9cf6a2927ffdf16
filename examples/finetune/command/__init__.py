"""What a user of the command meets: options, errors, exit statuses."""
