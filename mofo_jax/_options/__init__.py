"""Options that may differ between tensors.

`path_rules` defines the forms in which such an option may be given, and resolves it by
parameter path. `blocks` has the option that determines which coordinates compete, and
`layouts` its rules for common model families. `per_tensor` combines the options of the
filter.
"""
