-- What all processes of a deployment must have in common, and which broker is theirs. Written by the first join, compared
-- at every one (`migrations/0003`), changed by `rollcall deployment set`.
CREATE TABLE deployment (
    one boolean NOT NULL DEFAULT true,
    -- Tells this database from that of another deployment, to which a URL may lead by mistake.
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Named as the environment variables, because the comparison names them.
    partitions integer NOT NULL,
    broker_prefix text NOT NULL,
    command_retention_days integer NOT NULL,
    idempotency_window_hours integer NOT NULL,
    -- Only when it is configured: what is computed stands in `membership`.
    database_connection_budget integer,
    -- Unknown until a worker joins: the API has none.
    event_source text,
    -- The broker has a durable exchange with this in its name. None until a process has made one, or after an operator said
    -- that the broker is another one from now on.
    broker_mark uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT deployment_pkey PRIMARY KEY (one),
    CONSTRAINT deployment_one_check CHECK (one),
    CONSTRAINT deployment_command_retention_days_check CHECK (command_retention_days BETWEEN 1 AND 3650)
);

-- Refuses a process whose settings differ from the deployment's, with both values and the remedy. `joined_before` is the
-- deployment that the process has joined before, if any: then only what would lose commands counts, because an operator may
-- have changed the rest while it ran.
CREATE FUNCTION compare_deployment(settings jsonb, joined_before uuid) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    existing deployment;
    differences text;
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the database is encoded in %, which cannot hold every name; create it with ENCODING ''UTF8'' TEMPLATE template0',
            current_setting('server_encoding')
            USING ERRCODE = 'RC001';
    END IF;
    SELECT deployment.* INTO existing FROM deployment;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF existing.id <> joined_before THEN
        RAISE EXCEPTION 'the database belongs to the deployment %, and this process joined the deployment %; correct DATABASE_URL, or restart the process',
            existing.id, joined_before
            USING ERRCODE = 'RC001';
    END IF;
    SELECT string_agg(
        format('%s is %s here, but this deployment has %s; ', name, coalesce(here, 'not set'), coalesce(there, 'none'))
            || coalesce('set ' || name || '=' || there, 'unset it')
            || coalesce(', or change the deployment with `rollcall deployment set ' || change || '=' || coalesce(here, 'computed') || '`', ''),
        '; '
        ORDER BY name
    )
    INTO differences
    FROM (
        SELECT
            upper(key) AS name,
            nullif(given.value, '') AS here,
            nullif(stored.value, '') AS there,
            CASE key
                WHEN 'database_connection_budget' THEN 'budget'
                WHEN 'command_retention_days' THEN 'retention'
                WHEN 'idempotency_window_hours' THEN 'window'
                WHEN 'event_source' THEN 'event-source'
            END AS change
        FROM jsonb_each_text(to_jsonb(existing)) AS stored
        JOIN jsonb_each_text(settings) AS given USING (key)
        WHERE stored.value IS DISTINCT FROM given.value
            AND (joined_before IS NULL OR key IN ('partitions', 'broker_prefix'))
            AND NOT (key = 'event_source' AND stored.value IS NULL)
    ) AS difference;
    IF differences IS NOT NULL THEN
        RAISE EXCEPTION '%', differences USING ERRCODE = 'RC001';
    END IF;
END
$$;

-- Writes what is not written yet, for a process that is let in. The caller holds the lock of `membership`.
CREATE FUNCTION write_deployment(settings jsonb, joined_before uuid) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    known bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM deployment) THEN
        SELECT count(*) INTO known FROM partitions;
        IF known NOT IN (0, (settings ->> 'partitions')::integer) THEN
            RAISE EXCEPTION 'PARTITIONS is % here, but this deployment has %; set PARTITIONS=%', settings ->> 'partitions', known, known
                USING ERRCODE = 'RC001';
        END IF;
        -- Clients rely on it from here on, so it must survive a failover, unlike what else a control session commits.
        PERFORM set_config('synchronous_commit', 'on', true);
        INSERT INTO deployment (
            id, partitions, broker_prefix, command_retention_days, idempotency_window_hours, database_connection_budget,
            event_source
        )
        SELECT
            coalesce(joined_before, gen_random_uuid()), given.partitions, given.broker_prefix, given.command_retention_days,
            given.idempotency_window_hours, given.database_connection_budget, given.event_source
        FROM jsonb_populate_record(NULL::deployment, settings) AS given;
        INSERT INTO partitions (number)
        SELECT generate_series(0, (settings ->> 'partitions')::integer - 1)
        ON CONFLICT DO NOTHING;
    ELSE
        UPDATE deployment SET event_source = settings ->> 'event_source'
        WHERE event_source IS NULL AND settings ? 'event_source';
    END IF;
END
$$;

-- Claims the deployment's broker for the process that made an exchange named after `candidate`; gives the mark that counts.
CREATE FUNCTION mark_broker(candidate uuid) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM deployment WHERE broker_mark IS NULL) THEN
        RETURN (SELECT broker_mark FROM deployment);
    END IF;
    PERFORM set_config('synchronous_commit', 'on', true);
    PERFORM FROM membership FOR UPDATE;
    UPDATE deployment SET broker_mark = candidate WHERE broker_mark IS NULL;
    RETURN (SELECT broker_mark FROM deployment);
END
$$;

-- Changes the connection budget under running members, whom their heartbeats tell. NULL computes it again.
CREATE FUNCTION set_connection_budget(wished integer, OUT budget integer, OUT arithmetic text)
    LANGUAGE plpgsql
    AS $$
DECLARE
    limits record;
    needed integer;
BEGIN
    PERFORM FROM membership FOR UPDATE;
    PERFORM pg_stat_clear_snapshot();
    -- The role of the services may be given less than the server has, and the operator's less than that.
    SELECT server.* INTO limits
    FROM connection_limits(coalesce(
        pool_role_of('api'),
        (SELECT usename::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rollcall/%' LIMIT 1),
        session_user::text
    )) AS server;
    IF wished > limits.usable THEN
        RAISE EXCEPTION 'a budget of % is more than the server gives (%)', wished, limits.arithmetic USING ERRCODE = 'RC001';
    END IF;
    budget := coalesce(wished, limits.computed);
    arithmetic := CASE WHEN wished IS NULL THEN limits.computation ELSE 'configured; ' || limits.arithmetic END;
    SELECT arrival_places(budget) + greatest(4, coalesce(sum(1 + least(members.floor, members.most)), 0)) INTO needed
    FROM members
    WHERE expires_at > clock_timestamp();
    IF budget < needed THEN
        RAISE EXCEPTION 'a budget of % connections is too small (%): the % instances that are here need %', budget, arithmetic,
            (SELECT count(*) FROM members WHERE expires_at > clock_timestamp()), needed
            USING ERRCODE = 'RC001';
    END IF;
    UPDATE deployment SET database_connection_budget = wished;
    UPDATE membership SET budget = set_connection_budget.budget, arithmetic = set_connection_budget.arithmetic;
    PERFORM redistribute();
END
$$;

REVOKE EXECUTE ON FUNCTION mark_broker(uuid) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION set_connection_budget(integer) FROM PUBLIC;
