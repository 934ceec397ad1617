"""`pave pretrain`: makes the tiny models of the small world that ship with pave, from scenes drawn on the fly."""
