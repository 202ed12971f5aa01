-- Orders a user's commands by their effect. Each transaction takes one number when all its locks are held, and counts the
-- commands that it decides in it: the clocks of two APIs, and so the ids, may say otherwise.
CREATE SEQUENCE command_transactions;

-- A function, because the worker may use no sequence by itself.
CREATE FUNCTION next_command_position() RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT
    AS $$ SELECT nextval('command_transactions') << 16 $$;

REVOKE EXECUTE ON FUNCTION next_command_position() FROM PUBLIC;

-- One row per command that was decided: the deduplication record, the status resource and the audit trail at once.
-- Partitioned by the day inside the UUIDv7, so that retention can drop a table instead of deleting rows.
CREATE TABLE commands (
    id uuid NOT NULL,
    -- Absent when no user could be read from the message; such a command is parked.
    user_id uuid,
    type text NOT NULL,
    principal text NOT NULL,
    accepted_at timestamptz NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    -- A command that is not decided has no row.
    status text NOT NULL,
    -- Why it was rejected or parked.
    reason text,
    -- The user's version after a command that succeeded and left a user.
    user_version bigint,
    -- The place in the user's history; see command_transactions.
    position bigint NOT NULL DEFAULT next_command_position(),
    CONSTRAINT commands_pkey PRIMARY KEY (id),
    CONSTRAINT commands_status_check CHECK (status IN ('succeeded', 'rejected', 'parked')),
    CONSTRAINT commands_reason_check CHECK ((status IN ('rejected', 'parked')) = (reason IS NOT NULL))
) PARTITION BY RANGE (id);

ALTER SEQUENCE command_transactions OWNED BY commands.position;

-- The lowest UUID of a day (UTC): 48 bits of milliseconds, then zeros. Version bits are left out, so that it is not above
-- any version 7 UUID of that day.
CREATE FUNCTION command_day_bound(day date) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT (lpad(to_hex((extract(epoch FROM day::timestamp) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
    $$;

-- The days that have or had a table. A command without a row whose day was dropped may have been applied before: it is
-- parked. One whose day never was dropped is applied, however old.
CREATE TABLE command_days (
    day date NOT NULL,
    -- When a worker last asked for the table, to the hour: what waited for long gets a row too, and that row is kept
    -- as long as others.
    used_at timestamptz NOT NULL DEFAULT now(),
    -- When retention dropped the table; stays although the table may have been made again.
    dropped_at timestamptz,
    CONSTRAINT command_days_pkey PRIMARY KEY (day)
);

-- Makes sure that the commands of a day have a table; says whether retention dropped it before. NULL, and no table, for a day
-- of which this deployment can have no commands: later than tomorrow, or before both its own first day and what retention
-- keeps. Runs as its owner: the worker makes no tables.
CREATE FUNCTION ensure_command_day(wanted date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    earliest date;
BEGIN
    SELECT least((created_at AT TIME ZONE 'UTC')::date, today - command_retention_days) - 1 INTO earliest FROM deployment;
    IF wanted BETWEEN coalesce(earliest, today - 1) AND today + 1 THEN
        RETURN make_command_day(wanted);
    END IF;
    RETURN NULL;
END
$$;

-- The same for any day: what an operator replays may be older. Attaching takes a lock that lets reads and writes go on, which
-- creating a partition in place would not. Concurrent callers wait for each other at the day's row, which no service can lock;
-- an advisory lock could be held by any session of the database.
CREATE FUNCTION make_command_day(wanted date) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    partition text := 'commands_' || to_char(wanted, 'YYYYMMDD');
    dropped boolean;
BEGIN
    SELECT dropped_at IS NOT NULL
    INTO dropped
    FROM command_days
    WHERE day = wanted AND used_at > now() - interval '1 hour';
    IF FOUND AND has_command_day(partition) THEN
        RETURN dropped;
    END IF;
    INSERT INTO command_days (day) VALUES (wanted)
    ON CONFLICT (day) DO UPDATE SET used_at = now()
    RETURNING dropped_at IS NOT NULL INTO dropped;
    IF has_command_day(partition) THEN
        RETURN dropped;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE commands INCLUDING ALL)', partition);
    EXECUTE format(
        'ALTER TABLE commands ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        partition, command_day_bound(wanted), command_day_bound(wanted + 1)
    );
    RETURN dropped;
END
$$;

-- Whether the table of this name belongs to commands. Asked of the catalog's rows: to_regclass answers from this session's
-- cache, which waiting for a lock does not renew.
CREATE FUNCTION has_command_day(name text) RETURNS boolean
    LANGUAGE sql STABLE SET search_path FROM CURRENT
    AS $$
        SELECT EXISTS (
            SELECT
            FROM pg_inherits
            JOIN pg_class ON pg_class.oid = pg_inherits.inhrelid
            WHERE pg_inherits.inhparent = 'commands'::regclass AND pg_class.relname = name
        )
    $$;

REVOKE EXECUTE ON FUNCTION ensure_command_day(date) FROM PUBLIC;
