"""Everything that is an nn.Module."""
