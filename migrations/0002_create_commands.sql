-- One row per command that was decided: the deduplication record, the status resource and the audit trail at once.
-- Partitioned by the day inside the UUIDv7, so that retention can drop a table instead of deleting rows.
CREATE TABLE commands (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    type text NOT NULL,
    principal text NOT NULL,
    accepted_at timestamptz NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    -- 'pending' is never seen from outside: the row is inserted and decided in one transaction.
    status text NOT NULL DEFAULT 'pending',
    -- Why it was rejected or parked.
    reason text,
    -- The user's version after a command that succeeded and left a user.
    user_version bigint,
    CONSTRAINT commands_pkey PRIMARY KEY (id),
    CONSTRAINT commands_status_check CHECK (status IN ('pending', 'succeeded', 'rejected', 'parked')),
    CONSTRAINT commands_reason_check CHECK ((status IN ('rejected', 'parked')) = (reason IS NOT NULL))
) PARTITION BY RANGE (id);

-- The lowest UUID of a day (UTC): 48 bits of milliseconds, then zeros. Version bits are left out, so that it is not above
-- any version 7 UUID of that day.
CREATE FUNCTION command_day_bound(day date) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT (lpad(to_hex((extract(epoch FROM day::timestamp) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
    $$;

-- Makes sure that the commands of a day have a table. Attaching takes a lock that lets reads and writes go on, which
-- creating a partition in place would not. Concurrent callers take turns. Runs as its owner: the worker makes no tables.
CREATE FUNCTION ensure_command_day(day date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    partition text := 'commands_' || to_char(day, 'YYYYMMDD');
BEGIN
    IF to_regclass(partition) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('ensure_command_day'));
    -- Asked of the catalog's rows: to_regclass answers from this session's cache, which waiting for the lock does not renew.
    IF EXISTS (
        SELECT
        FROM pg_inherits
        JOIN pg_class ON pg_class.oid = pg_inherits.inhrelid
        WHERE pg_inherits.inhparent = 'commands'::regclass AND pg_class.relname = partition
    ) THEN
        RETURN;
    END IF;
    -- Outcomes update the row that deduplication inserted; the free space keeps that on the same page.
    EXECUTE format('CREATE TABLE %I (LIKE commands INCLUDING ALL) WITH (fillfactor = 60)', partition);
    EXECUTE format(
        'ALTER TABLE commands ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        partition, command_day_bound(day), command_day_bound(day + 1)
    );
END
$$;

REVOKE EXECUTE ON FUNCTION ensure_command_day(date) FROM PUBLIC;
