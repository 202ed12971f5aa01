-- Up to when every command that was accepted for a partition is decided, by the server's clock and less a margin: the owner
-- moves it on when it has seen that nothing older waits. NULL until it did so once. A command that was accepted before the
-- lowest of all partitions and has no row was lost outside of the services, and its status is `unknown`.
ALTER TABLE partitions ADD COLUMN decided_through timestamptz;
