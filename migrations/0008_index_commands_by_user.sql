-- A user's history, in the order in which commands took effect: a page merges the entries of each day's table, in order.
-- Not CONCURRENTLY, which PostgreSQL does not do for a partitioned table: writes wait until it is built. Tables of days to
-- come get it with the parent's other indexes.
CREATE INDEX commands_user_id_position_idx ON commands (user_id, position);
