"""Options that may differ from tensor to tensor.

`path_rules` says how such an option is given and resolves it by the paths of
parameters; `blocks` has the option that says which coordinates compete, and `layouts`
its ready rules for models that people train; `per_tensor` puts the options of the
filter together.
"""
