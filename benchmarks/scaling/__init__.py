"""An epoch on several processes against one."""
