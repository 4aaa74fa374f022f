"""Everything that puts the programs somewhere: the AWS of an account, or the local one."""
