"""Options that may differ from tensor to tensor."""
