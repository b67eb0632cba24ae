"""The run around the training: its folder, its files, its processes, what a person sees of it. Knows nothing of models
or rewards. Any module may be imported from outside; names with an underscore stay inside theirs."""
