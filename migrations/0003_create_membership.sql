-- Who takes part, and which worker owns which partition. Every change of either happens under one lock.
--
-- What instances call runs as its owner, who may end the sessions of every service's role; no service may by itself, nor
-- write these tables. The functions that they call in turn are nobody else's.

-- The row whose lock makes redistributions take turns. Lock order, always: this row first, members and partitions second.
CREATE TABLE membership (
    id boolean NOT NULL DEFAULT true,
    -- For how long a heartbeat holds, by the server's clock.
    time_to_live interval NOT NULL DEFAULT '5 seconds',
    CONSTRAINT membership_pkey PRIMARY KEY (id),
    CONSTRAINT membership_id_check CHECK (id)
);

INSERT INTO membership DEFAULT VALUES;

-- One row per living instance.
CREATE TABLE members (
    instance uuid NOT NULL,
    -- In the order of joining; an instance that was reaped joins again under another.
    epoch bigint GENERATED ALWAYS AS IDENTITY,
    service text NOT NULL,
    joined_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    -- The session of the control connection: when it is gone, so is the instance, whatever the clock says.
    control_pid integer NOT NULL,
    control_started_at timestamptz NOT NULL,
    CONSTRAINT members_pkey PRIMARY KEY (instance)
) WITH (fillfactor = 50);

-- One row per partition queue.
CREATE TABLE partitions (
    number integer NOT NULL,
    -- The fence: grows with every change of the owner, and every transaction that applies commands checks it.
    epoch bigint NOT NULL DEFAULT 0,
    -- Who may consume.
    owner uuid,
    -- Who shall, once the owner has let go.
    heir uuid,
    CONSTRAINT partitions_pkey PRIMARY KEY (number),
    CONSTRAINT partitions_heir_check CHECK (heir IS NULL OR heir <> owner)
) WITH (fillfactor = 50);

-- Whether an instance's control session still exists. Sessions of every role are visible to every role.
CREATE FUNCTION member_connected(member members) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
        SELECT EXISTS (
            SELECT
            FROM pg_stat_activity
            WHERE pid = member.control_pid AND backend_start = member.control_started_at
        )
    $$;

-- Hands the partitions out: sticky, and to each worker as many as to the next or one more. A partition without an owner
-- changes hands at once; another gets an heir and changes hands when its owner lets go. The caller holds the lock.
CREATE FUNCTION redistribute_partitions() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE partitions SET heir = NULL
    WHERE heir IS NOT NULL AND NOT EXISTS (SELECT FROM members WHERE instance = heir);
    -- A transaction that applies commands holds its partition's row FOR KEY SHARE. A new heir does not disturb it; a new
    -- owner waits for it.
    PERFORM FROM partitions
    WHERE owner IS NOT NULL AND NOT EXISTS (SELECT FROM members WHERE instance = owner)
    FOR UPDATE;
    UPDATE partitions SET owner = heir, heir = NULL, epoch = epoch + 1
    WHERE owner IS NOT NULL AND NOT EXISTS (SELECT FROM members WHERE instance = owner);

    WITH workers AS (
        SELECT
            instance,
            row_number() OVER (
                ORDER BY (SELECT count(*) FROM partitions WHERE coalesce(heir, owner) = instance) DESC, epoch
            ) AS place,
            (SELECT count(*) FROM partitions) AS partitions,
            count(*) OVER () AS workers
        FROM members
        WHERE service = 'worker'
    ),
    quotas AS (
        -- Those that hold most get what does not divide evenly, so that as little as possible moves.
        SELECT instance, place, partitions / workers + (place <= partitions % workers)::integer AS quota
        FROM workers
    ),
    held AS (
        SELECT
            number,
            instance,
            -- Partitions that are on their way already go first: nobody consumes them yet.
            row_number() OVER (PARTITION BY instance ORDER BY heir IS NOT NULL, number) AS nth
        FROM partitions
        JOIN quotas ON instance = coalesce(heir, owner)
    ),
    kept AS (
        SELECT number, instance
        FROM held
        JOIN quotas USING (instance)
        WHERE nth <= quota
    ),
    spare AS (
        SELECT number, row_number() OVER (ORDER BY number) AS nth
        FROM partitions
        WHERE number NOT IN (SELECT number FROM kept)
    ),
    seats AS (
        SELECT instance, row_number() OVER (ORDER BY seat, place) AS nth
        FROM quotas
        CROSS JOIN LATERAL generate_series((SELECT count(*) FROM kept WHERE kept.instance = quotas.instance) + 1, quota)
            AS seat
    )
    UPDATE partitions
    SET owner = coalesce(owner, instance),
        epoch = epoch + (owner IS NULL)::integer,
        heir = CASE WHEN owner <> instance THEN instance END
    FROM spare
    JOIN seats USING (nth)
    WHERE partitions.number = spare.number;
END
$$;

-- Removes instances that are gone: their control session ended, or their heartbeat is too old. The sessions of such an
-- instance are ended first, so that what it still wanted to commit cannot be. The caller holds the lock.
CREATE FUNCTION reap_members() RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    gone record;
    reaped boolean := false;
BEGIN
    FOR gone IN
        SELECT instance, control_pid, control_started_at
        FROM members
        WHERE expires_at <= clock_timestamp() OR NOT member_connected(members)
    LOOP
        PERFORM pg_terminate_backend(pid)
        FROM pg_stat_activity
        WHERE (
                application_name = 'rollcall/' || gone.instance
                OR (pid = gone.control_pid AND backend_start = gone.control_started_at)
            )
            -- Anybody can call a session so; one that may not be ended must not keep the rest from it.
            AND pg_has_role(usesysid, 'USAGE');
        DELETE FROM members WHERE instance = gone.instance;
        reaped := true;
    END LOOP;
    RETURN reaped;
END
$$;

-- Takes part. A deployment has one number of partitions for ever: another one is refused.
CREATE FUNCTION join_membership(instance uuid, service text, partition_count integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    known bigint;
    joined bigint;
BEGIN
    PERFORM FROM membership FOR UPDATE;
    PERFORM reap_members();
    SELECT count(*) INTO known FROM partitions;
    IF known = 0 THEN
        INSERT INTO partitions (number) SELECT generate_series(0, partition_count - 1);
    ELSIF known <> partition_count THEN
        RAISE EXCEPTION 'PARTITIONS is % here, but this deployment has %', partition_count, known
            USING ERRCODE = 'RC001';
    END IF;
    INSERT INTO members (instance, service, expires_at, control_pid, control_started_at)
    SELECT join_membership.instance, join_membership.service, clock_timestamp() + time_to_live, pid, backend_start
    FROM membership, pg_stat_activity
    WHERE pid = pg_backend_pid()
    -- It lost its control connection and came back before anybody reaped it: what it owns is still its own.
    ON CONFLICT ON CONSTRAINT members_pkey DO UPDATE
    SET epoch = DEFAULT,
        expires_at = excluded.expires_at,
        control_pid = excluded.control_pid,
        control_started_at = excluded.control_started_at
    RETURNING epoch INTO joined;
    PERFORM redistribute_partitions();
    RETURN joined;
END
$$;

-- A heartbeat. Looks after the others, too: whoever beats reaps. False when this instance was reaped itself.
CREATE FUNCTION beat_membership(instance uuid, epoch bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
BEGIN
    IF EXISTS (
        SELECT
        FROM members
        WHERE members.instance <> beat_membership.instance
            AND (expires_at <= clock_timestamp() OR NOT member_connected(members))
    ) THEN
        PERFORM FROM membership FOR UPDATE;
        IF reap_members() THEN
            PERFORM redistribute_partitions();
        END IF;
    END IF;
    UPDATE members
    SET expires_at = clock_timestamp() + (SELECT time_to_live FROM membership)
    WHERE members.instance = beat_membership.instance
        AND members.epoch = beat_membership.epoch
        AND expires_at > clock_timestamp();
    RETURN FOUND;
END
$$;

-- Lets partitions go, after their channels were closed: each passes to its heir.
CREATE FUNCTION release_partitions(instance uuid, numbers integer[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
BEGIN
    PERFORM FROM membership FOR UPDATE;
    PERFORM FROM partitions WHERE number = ANY(numbers) AND owner = instance FOR UPDATE;
    UPDATE partitions
    SET owner = heir, heir = NULL, epoch = partitions.epoch + 1
    WHERE number = ANY(numbers) AND owner = instance AND heir IS NOT NULL;
END
$$;

-- Leaves, after every channel was closed.
CREATE FUNCTION leave_membership(instance uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
BEGIN
    PERFORM FROM membership FOR UPDATE;
    DELETE FROM members WHERE members.instance = leave_membership.instance;
    PERFORM redistribute_partitions();
END
$$;

REVOKE EXECUTE ON FUNCTION join_membership(uuid, text, integer) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION beat_membership(uuid, bigint) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION release_partitions(uuid, integer[]) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION leave_membership(uuid) FROM PUBLIC;
