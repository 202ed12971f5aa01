-- What changed, for whoever subscribes: one row per change, written in the transaction that makes it, and published by the
-- worker that owns the partition. Published rows are pruned after EVENT_RETENTION_HOURS.
CREATE TABLE events (
    -- Numbers a user's events in the order of its changes: each is written under the lock that the change holds. Across
    -- users it is no order of commits, so nothing may read on from a last position.
    position bigint GENERATED ALWAYS AS IDENTITY,
    -- The command's id: a command makes at most one change. Subscribers tell repeated messages by it.
    id uuid NOT NULL,
    -- Which worker publishes it.
    partition integer NOT NULL,
    type text NOT NULL,
    user_id uuid NOT NULL,
    -- After the change; a deletion counts as one more.
    user_version bigint NOT NULL,
    -- The user after the change. Text that nothing here looks into.
    data json NOT NULL,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    -- W3C trace context of the command's message.
    traceparent text,
    tracestate text,
    -- When its worker noted that the broker had confirmed it.
    published_at timestamptz,
    CONSTRAINT events_pkey PRIMARY KEY (position)
    -- Every row is updated once, soon after it was written: on the same page, that writes a third of the log.
) WITH (fillfactor = 50);

-- What is still to be published of a partition, in order. A row that was published leaves it, and there is no index on
-- published_at: it would be written with every event, and pruning goes by the position.
CREATE INDEX events_pending_idx ON events (partition, position) WHERE published_at IS NULL;

-- How many transactions of replays recorded events of a partition. The worker that owns it publishes its own events from memory, and
-- looks into the table when this number has changed: what was replayed comes before later events of the same user.
CREATE TABLE partition_replays (
    partition integer NOT NULL,
    replays bigint NOT NULL,
    CONSTRAINT partition_replays_pkey PRIMARY KEY (partition)
);

-- Drops the tables of days that are no longer kept and gives how many; a table that was used within a day is kept. The
-- deployment's retention is the least, whatever the caller asks for, and without a deployment nothing is dropped. Waits only
-- briefly for the lock: a batch that is under way comes first, and a drop that waited longer would hold up those behind it.
-- Runs as the tables' owner.
CREATE FUNCTION drop_command_days(kept_days integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    before date;
    name text;
    dropped integer := 0;
BEGIN
    SELECT (now() AT TIME ZONE 'UTC')::date - greatest(kept_days, command_retention_days) - 1 INTO before FROM deployment;
    PERFORM set_config('lock_timeout', '200ms', true);
    FOR name IN
        SELECT pg_class.relname
        FROM pg_inherits
        JOIN pg_class ON pg_class.oid = pg_inherits.inhrelid
        LEFT JOIN command_days ON pg_class.relname = 'commands_' || to_char(command_days.day, 'YYYYMMDD')
        WHERE pg_inherits.inhparent = 'commands'::regclass
            AND pg_class.relname < 'commands_' || to_char(before, 'YYYYMMDD')
            AND (command_days.used_at IS NULL OR command_days.used_at < (before + 1)::timestamp AT TIME ZONE 'UTC')
        ORDER BY pg_class.relname
    LOOP
        -- The parent first, as every statement on commands takes its locks.
        LOCK TABLE commands IN ACCESS EXCLUSIVE MODE;
        EXECUTE format('DROP TABLE %I', name);
        -- Remembered for good: a command of that day that comes again may have been applied.
        INSERT INTO command_days (day, dropped_at)
        VALUES (to_date(right(name, 8), 'YYYYMMDD'), now())
        ON CONFLICT (day) DO UPDATE SET dropped_at = now();
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

REVOKE EXECUTE ON FUNCTION drop_command_days(integer) FROM PUBLIC;
