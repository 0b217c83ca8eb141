"""What roles have done and what they do, as the tables that are shown of them."""
