"""A model in a process of its own: what ends that process, or takes it over, does not end or take over this one."""
