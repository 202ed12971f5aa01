-- A user's history, newest first: each day's table gives its part in order, and the days follow each other, so that a page
-- reads only its own rows. Not CONCURRENTLY, which PostgreSQL does not do for a partitioned table: writes wait until it is
-- built. Tables of days to come get it with the parent's other indexes.
CREATE INDEX commands_user_id_id_idx ON commands (user_id, id);
