"""Tables as views of records."""
