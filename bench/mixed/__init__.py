"""What batch jobs lose to virtual machines beside them, with and without weights."""
