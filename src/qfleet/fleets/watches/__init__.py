"""What looks after the roles of an asynchronous run while it goes on: actors, shards, evaluator."""
