-- Who takes part, how many connections each instance may open, and which worker owns which partition. Every change of any
-- of these happens under one lock.
--
-- What instances call runs as its owner, who may end the sessions of every service's role; no service may by itself, nor
-- write these tables. The functions that they call in turn are nobody else's.
--
-- Ids of instances are public: they stand in the names of sessions. So no function takes one: a caller gives its secret, from
-- which its id is computed, and can speak for no other instance, however it came by that one's id. Which service it is an
-- instance of, the functions that its role may call decide: the API's may neither join as a worker nor say anything of
-- partitions.

-- The row whose lock makes redistributions take turns. Lock order, always: this row first, members and partitions second.
CREATE TABLE membership (
    id boolean NOT NULL DEFAULT true,
    -- For how long a heartbeat holds, by the server's clock.
    time_to_live interval NOT NULL DEFAULT '5 seconds',
    -- What all instances together may have open, their control connections included, and how that number came about. Set by a
    -- join that is admitted, or by an operator.
    budget integer NOT NULL DEFAULT 0,
    arithmetic text NOT NULL DEFAULT '',
    -- When the next of those that found no room may ask again, so that they come one at a time.
    next_knock_at timestamptz NOT NULL DEFAULT '-infinity',
    -- Grows when the members have reason to look again before their next heartbeat.
    turn bigint NOT NULL DEFAULT 0,
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
    -- Of the program, for the operator.
    version text NOT NULL,
    joined_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    -- How connections are shared out: in proportion to the weights, at least the floor, at most its own bound. The bound
    -- is 0 where a pooler is in front of the server: what that opens is nobody's here.
    weight integer NOT NULL,
    floor integer NOT NULL,
    most integer NOT NULL,
    -- Past its first second. Until then it gets its floor only: many that start at once shall find room.
    settled boolean NOT NULL DEFAULT false,
    -- What it shall have.
    target integer NOT NULL DEFAULT 0,
    -- What it may have open. Grows out of observed room only, and shrinks when the instance says that it did.
    granted integer NOT NULL DEFAULT 0,
    -- The most that it had use for lately, and what its pool looked like at the last heartbeat.
    demand integer NOT NULL DEFAULT 0,
    open integer NOT NULL DEFAULT 0,
    in_use integer NOT NULL DEFAULT 0,
    waiting integer NOT NULL DEFAULT 0,
    beat_at timestamptz NOT NULL DEFAULT now(),
    -- Whether a worker reaches the broker, and since when that is so.
    consumes boolean NOT NULL DEFAULT true,
    consumes_since timestamptz NOT NULL DEFAULT now(),
    -- The session of the control connection: soon after it is gone, so is the instance, whatever the clock says. Unknown where
    -- a pooler lends it another one for each transaction; then there is only the clock.
    control_pid integer,
    -- When that was found to be gone, and for how long the instance may go on opening connections all the same, before it must
    -- have noticed. Others get its share after that.
    control_lost_at timestamptz,
    grace interval NOT NULL DEFAULT '400 milliseconds',
    CONSTRAINT members_pkey PRIMARY KEY (instance),
    CONSTRAINT members_share_check CHECK (weight > 0 AND floor >= 0 AND most >= 0 AND target >= 0 AND granted >= 0)
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

-- Instances whose control session ended without anybody having noticed yet. Known by name and pid, which every role sees of
-- every session.
CREATE FUNCTION lost_members() RETURNS TABLE (instance uuid)
    LANGUAGE sql
    AS $$
        SELECT members.instance
        FROM members
        WHERE control_lost_at IS NULL
            AND control_pid IS NOT NULL
            AND (control_pid, 'rollcall-control/' || members.instance) NOT IN (
                SELECT pid, application_name
                FROM pg_stat_activity
                WHERE application_name IS NOT NULL
            )
    $$;

-- Notes them. The caller holds the lock.
CREATE FUNCTION note_lost_members() RETURNS void
    LANGUAGE sql
    AS $$
        UPDATE members
        SET control_lost_at = clock_timestamp()
        WHERE instance IN (SELECT lost.instance FROM lost_members() AS lost)
    $$;

-- Instances whose control session ended long enough ago, or whose heartbeat is too old.
CREATE FUNCTION gone_members() RETURNS TABLE (instance uuid)
    LANGUAGE sql
    AS $$
        SELECT members.instance
        FROM members
        WHERE expires_at <= clock_timestamp() OR control_lost_at <= clock_timestamp() - grace
    $$;

-- Workers that have not reached the broker for a while in which another one did all the time. A broker that is away or is
-- started again is out of reach for all of them, for some a little longer: that strands nobody.
CREATE FUNCTION stranded_workers() RETURNS TABLE (instance uuid)
    LANGUAGE sql
    AS $$
        SELECT members.instance
        FROM members
        WHERE service = 'worker'
            AND NOT consumes
            AND consumes_since <= clock_timestamp() - interval '5 seconds'
            AND EXISTS (
                SELECT
                FROM members AS others
                WHERE others.service = 'worker'
                    AND others.consumes
                    AND others.consumes_since <= clock_timestamp() - interval '5 seconds'
            )
    $$;

-- Hands the partitions out: sticky, and to each worker that is not stranded as many as to the next or one more. A partition
-- without an owner changes hands at once; another gets an heir and changes hands when its owner lets go. The caller holds
-- the lock.
CREATE FUNCTION redistribute_partitions() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE partitions SET heir = NULL
    WHERE heir IS NOT NULL AND NOT EXISTS (SELECT FROM members WHERE instance = heir);
    -- A transaction that applies commands holds its partition's row FOR KEY SHARE. A new heir does not disturb it; a new
    -- owner has to wait for it, and so comes with a later heartbeat: everybody else waits for the lock that is held here.
    WITH abandoned AS (
        SELECT number
        FROM partitions
        WHERE owner IS NOT NULL AND NOT EXISTS (SELECT FROM members WHERE instance = owner)
        FOR UPDATE SKIP LOCKED
    )
    UPDATE partitions SET owner = heir, heir = NULL, epoch = epoch + 1
    FROM abandoned
    WHERE partitions.number = abandoned.number;

    WITH workers AS (
        SELECT
            instance,
            row_number() OVER (
                ORDER BY (SELECT count(*) FROM partitions WHERE coalesce(heir, owner) = instance) DESC, epoch
            ) AS place,
            (SELECT count(*) FROM partitions) AS partitions,
            count(*) OVER () AS workers
        FROM members
        WHERE service = 'worker' AND instance NOT IN (SELECT stranded.instance FROM stranded_workers() AS stranded)
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

-- What the server gives a role (`usable`), or any role (`shared`); what of it stays free for migrations, backups and people,
-- what sessions that are not this deployment's hold now, and the budget that is left when none is configured.
CREATE FUNCTION connection_limits(
    pool_role text,
    OUT most integer, OUT reserved integer, OUT of_database integer, OUT of_role integer,
    OUT usable integer, OUT shared integer, OUT headroom integer, OUT others integer, OUT computed integer,
    OUT arithmetic text, OUT computation text
)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
        WITH given AS (
            SELECT
                current_setting('max_connections')::integer AS most,
                current_setting('superuser_reserved_connections')::integer
                    -- Since PostgreSQL 16.
                    + coalesce(current_setting('reserved_connections', true), '0')::integer AS reserved,
                -- A limit of -1 is none.
                (SELECT datconnlimit FROM pg_database WHERE datname = current_database() AND datconnlimit >= 0) AS of_database,
                (SELECT rolconnlimit FROM pg_roles WHERE rolname = pool_role AND rolconnlimit >= 0) AS of_role
        ),
        foreign_sessions AS (
            SELECT
                count(*)::integer AS on_server,
                (count(*) FILTER (WHERE datname = current_database()))::integer AS in_database,
                (count(*) FILTER (WHERE usename = pool_role))::integer AS of_role
            FROM pg_stat_activity
            WHERE usename IS NOT NULL
                AND datname IS NOT NULL
                -- Hidden from a role that may not see more of the session.
                AND coalesce(backend_type, 'client backend') = 'client backend'
                AND NOT (datname = current_database() AND coalesce(application_name, '') LIKE 'rollcall%')
        ),
        usable AS (
            SELECT
                given.most, given.reserved, given.of_database, given.of_role,
                least(given.most - given.reserved, given.of_database, given.of_role) AS usable,
                least(given.most - given.reserved, given.of_database) AS shared,
                least(
                    given.most - given.reserved - on_server, given.of_database - in_database, given.of_role - foreign_sessions.of_role
                ) AS free,
                format('max_connections %s - %s reserved', given.most, given.reserved)
                    || coalesce(', database limit ' || given.of_database, '')
                    || coalesce(', role limit ' || given.of_role, '') AS limits
            FROM given, foreign_sessions
        ),
        reduced AS (
            SELECT
                most, reserved, of_database, of_role, usable, shared,
                greatest(3, ceil(usable / 10.0)::integer) AS headroom,
                usable - free AS others,
                limits || format(': %s usable', usable) AS arithmetic
            FROM usable
        )
        SELECT
            most, reserved, of_database, of_role, usable, shared, headroom, others,
            usable - headroom - others,
            arithmetic,
            arithmetic || format(' - %s for migrations, backups and people', headroom)
                || CASE WHEN others > 0 THEN format(' - %s that others held at the start', others) ELSE '' END
        FROM reduced
    $$;

-- The places of a budget that no share takes, so that an instance which arrives finds room for its control connection. They
-- arrive one after the other, as long as the broker says whose turn it is; more places are for when it does not, and for
-- those who wait for others to close connections.
CREATE FUNCTION arrival_places(budget integer) RETURNS integer
    LANGUAGE sql IMMUTABLE SECURITY DEFINER SET search_path FROM CURRENT
    AS $$ SELECT least(8, greatest(2, budget / 24)) $$;

-- What a share keeps when others could use a part of it: a quarter more than it had use for, and at least one.
CREATE FUNCTION kept_connections(demand integer) RETURNS integer
    LANGUAGE sql IMMUTABLE
    AS $$ SELECT demand + greatest(1, demand / 4) $$;

-- The sessions of each pool as the server sees them, whether or not its instance takes part.
CREATE FUNCTION pool_sessions() RETURNS TABLE (pool text, sessions integer)
    LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
        SELECT application_name, count(*)::integer
        FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'rollcall/%'
            -- One of these is no connection, and has the name of the session that it helps.
            AND backend_type IS DISTINCT FROM 'parallel worker'
        GROUP BY application_name
    $$;

-- Sets the targets. First everybody gets its floor, then what it has use for, then an equal part of the rest; each time
-- whoever has least for its weight comes next. The caller holds the lock.
CREATE FUNCTION share_connections() RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    places integer;
BEGIN
    SELECT budget - arrival_places(budget) - (SELECT count(*) FROM members) INTO places FROM membership;
    WITH wishes AS (
        SELECT
            instance,
            epoch,
            weight,
            least(floor, most) AS lowest,
            CASE
                WHEN NOT settled THEN least(floor, most)
                WHEN demand > target THEN least(demand, most)
                ELSE least(kept_connections(demand), target, most)
            END AS wish,
            CASE WHEN settled THEN most ELSE least(floor, most) END AS highest
        FROM members
    ),
    places_in_order AS (
        SELECT
            instance,
            row_number() OVER (
                ORDER BY
                    CASE WHEN nth <= lowest THEN 0 WHEN nth <= wish THEN 1 ELSE 2 END,
                    nth::double precision / weight,
                    epoch
            ) AS place
        FROM wishes
        CROSS JOIN LATERAL generate_series(1, least(highest, places)) AS nth
    ),
    shares AS (
        SELECT instance, count(place) AS share
        FROM members
        LEFT JOIN places_in_order USING (instance)
        WHERE place IS NULL OR place <= places
        GROUP BY instance
    )
    UPDATE members
    SET target = coalesce((SELECT share FROM shares WHERE shares.instance = members.instance), 0)
    WHERE target <> coalesce((SELECT share FROM shares WHERE shares.instance = members.instance), 0);
END
$$;

-- What of the budget is taken, whether or not it should be. The caller holds the lock.
CREATE FUNCTION taken_connections() RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
        SELECT
            -- Each member's control connection, or what the server still shows of several, and what it may have open or, longer
            -- than it should, has.
            (
                SELECT coalesce(sum(greatest(controls, 1) + greatest(granted, coalesce(sessions, 0))), 0)
                FROM members
                LEFT JOIN pool_sessions() ON pool = 'rollcall/' || instance
                CROSS JOIN LATERAL (
                    SELECT count(*) AS controls
                    FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'rollcall-control/' || instance
                ) AS control
            )
            -- What those who are gone have left behind.
            + (
                SELECT coalesce(sum(sessions), 0)
                FROM pool_sessions()
                WHERE pool NOT IN (SELECT 'rollcall/' || instance FROM members)
            )
    $$;

-- Raises the grants of those that shall have more, out of what is neither granted nor seen in use, to those that have least
-- first. The caller holds the lock.
CREATE FUNCTION grant_connections() RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    room integer;
BEGIN
    SELECT budget
        - taken_connections()
        -- Those that are just arriving or leaving, and room for more of them.
        - greatest(arrival_places(budget), (
            SELECT count(*)
            FROM pg_stat_activity
            WHERE datname = current_database()
                AND application_name LIKE 'rollcall-control/%'
                AND application_name NOT IN (SELECT 'rollcall-control/' || instance FROM members)
        ))
    INTO room
    FROM membership;
    UPDATE members
    SET granted = granted + least(lack, room - before)
    FROM (
        SELECT
            instance,
            target - granted AS lack,
            sum(target - granted) OVER (ORDER BY granted, epoch) - (target - granted) AS before
        FROM members
        WHERE granted < target
    ) AS needs
    WHERE members.instance = needs.instance AND before < room;
    RETURN FOUND;
END
$$;

-- Tells the members to look again. The caller holds the lock.
CREATE FUNCTION call_members() RETURNS void
    LANGUAGE sql
    AS $$ UPDATE membership SET turn = turn + 1 $$;

-- After anybody came or went. The caller holds the lock.
CREATE FUNCTION redistribute() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM redistribute_partitions();
    PERFORM share_connections();
    PERFORM grant_connections();
    PERFORM call_members();
END
$$;

-- Removes instances that are gone: their control session ended a while ago, or their heartbeat is too old. The sessions of such an
-- instance are ended first, so that what it still wanted to commit cannot be. The caller holds the lock.
CREATE FUNCTION reap_members() RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    gone record;
    reaped boolean := false;
BEGIN
    FOR gone IN
        SELECT instance FROM gone_members()
    LOOP
        PERFORM pg_terminate_backend(pid)
        FROM pg_stat_activity
        WHERE application_name IN ('rollcall/' || gone.instance, 'rollcall-control/' || gone.instance)
            -- It may be the caller itself, who learns of it by the answer.
            AND pid <> pg_backend_pid()
            -- Anybody can call a session so; one that may not be ended must not keep the rest from it.
            AND pg_has_role(usesysid, 'USAGE');
        DELETE FROM members WHERE instance = gone.instance;
        reaped := true;
    END LOOP;
    RETURN reaped;
END
$$;

-- The id of the instance that knows this secret. Nobody can find a secret to an id that exists.
CREATE FUNCTION instance_of(secret bytea) RETURNS uuid
    LANGUAGE sql IMMUTABLE
    AS $$ SELECT encode(substr(sha256(secret), 1, 16), 'hex')::uuid $$;

-- The role of a service's pool where the deployment has roles of its own (`rollcall roles`): they are named after that of the
-- owner, who runs this.
CREATE FUNCTION pool_role_of(service text) RETURNS text
    LANGUAGE sql STABLE
    AS $$
        SELECT rolname::text
        FROM pg_roles
        WHERE current_user LIKE '%\_migrator' AND rolname = regexp_replace(current_user, 'migrator$', service)
    $$;

-- Takes part. `settings` is what all processes must have in common, `joined_before` the deployment that this one has joined
-- before, if any. A process whose settings differ is refused before anything is changed (`compare_deployment`), and so is a
-- budget that the server cannot give. Without room there is no epoch, but a reason, and for how long to stay away before asking
-- again; that changes nothing either. `pool_role` is whose sessions the pool's are, where the roles' names do not say so;
-- `own_session` says that the caller's session ends with the caller.
CREATE FUNCTION join_membership(
    secret bytea, service text, version text, settings jsonb, joined_before uuid,
    weight integer, floor integer, most integer, pool_role text, own_session boolean,
    OUT joined bigint, OUT lives interval, OUT reason text, OUT away interval
)
    LANGUAGE plpgsql
    AS $$
DECLARE
    self uuid := instance_of(secret);
    configured integer := (settings ->> 'database_connection_budget')::integer;
    limits record;
    total integer;
    basis text;
    alone boolean;
    taken integer;
BEGIN
    -- The other members' shares are computed from these, so a caller may not name any number.
    weight := least(greatest(weight, 1), 10);
    floor := least(greatest(floor, 0), 1);
    most := least(greatest(most, 0), 100000);
    version := left(version, 100);
    PERFORM FROM membership FOR UPDATE;
    PERFORM pg_stat_clear_snapshot();
    PERFORM compare_deployment(settings, joined_before);
    SELECT
        server.usable, server.shared, server.headroom, server.of_role, server.computed, server.arithmetic, server.computation
    INTO limits
    FROM connection_limits(coalesce(pool_role_of(service), pool_role, session_user)) AS server;
    -- An operator may have changed it since this process read its own.
    IF EXISTS (SELECT FROM deployment) THEN
        SELECT database_connection_budget INTO configured FROM deployment;
    END IF;
    -- A server that gives less than it did must not end processes that run.
    IF joined_before IS NULL AND configured > limits.usable THEN
        RAISE EXCEPTION 'DATABASE_CONNECTION_BUDGET is %, but the server gives less (%)', configured, limits.arithmetic
            USING ERRCODE = 'RC001';
    END IF;

    -- It lost its control connection and came back before its heartbeat was too old: not gone, and what it has is still its own.
    UPDATE members SET control_pid = CASE WHEN own_session THEN pg_backend_pid() END, control_lost_at = NULL
    WHERE members.instance = self AND expires_at > clock_timestamp();
    PERFORM note_lost_members();
    IF reap_members() THEN
        PERFORM redistribute();
        PERFORM pg_stat_clear_snapshot();
    END IF;

    -- The others' budget is this one's: a budget that is computed depends on the role and on the moment. Only a server that
    -- gives less by now makes it smaller.
    alone := NOT EXISTS (SELECT FROM members WHERE members.instance <> self);
    IF configured IS NOT NULL THEN
        total := least(configured, limits.shared);
        basis := 'configured; ' || limits.arithmetic;
    ELSIF alone THEN
        total := limits.computed;
        basis := limits.computation;
    ELSE
        SELECT least(membership.budget, limits.shared), membership.arithmetic INTO total, basis FROM membership;
        IF joined_before IS NULL AND total > limits.usable THEN
            RAISE EXCEPTION 'the budget of % connections (%) is more than the role of this process may have (%); give the roles of all services that limit at least, or set DATABASE_CONNECTION_BUDGET',
                total, basis, limits.arithmetic
                USING ERRCODE = 'RC001';
        END IF;
    END IF;

    -- An API and a worker, each with a control connection and one more.
    IF total < 4 + arrival_places(total) THEN
        reason := format(
            'a budget of %s connections (%s) is too small: an API and a worker need 4, and %s are kept for arrivals',
            total, basis, arrival_places(total)
        );
        away := interval '1 second';
        -- Not for what others hold, which they may give back.
        IF joined_before IS NULL
            AND coalesce(configured, limits.usable - limits.headroom) < 4 + arrival_places(coalesce(configured, limits.usable - limits.headroom))
        THEN
            RAISE EXCEPTION '%', reason USING ERRCODE = 'RC001';
        END IF;
    ELSE
        -- Seats: a control connection and the floor for each, and one seat for each service that is not here yet.
        SELECT coalesce(sum(1 + least(members.floor, members.most)), 0) INTO taken
        FROM members
        WHERE members.instance <> self;
        SELECT taken + 2 * count(*) INTO taken
        FROM unnest(ARRAY['api', 'worker']) AS needed
        WHERE needed <> join_membership.service AND needed NOT IN (SELECT members.service FROM members);
        IF taken + 1 + join_membership.floor + arrival_places(total) > total THEN
            reason := format(
                'the budget of %s connections (%s) feeds no more than the %s instances that are here; %s of it are kept for arrivals; raise it with `rollcall deployment set budget=N`, or run fewer instances',
                total, basis, (SELECT count(*) FROM members), arrival_places(total)
            );
            away := interval '1 second';
            IF EXISTS (SELECT FROM members WHERE control_lost_at IS NOT NULL) THEN
                reason := 'waits for the place of an instance that just ended';
                away := interval '0 seconds';
            END IF;
        ELSIF taken_connections() >= total
            AND NOT EXISTS (SELECT FROM members WHERE members.instance = self)
        THEN
            reason := format('others are closing connections to make room in the budget of %s', total);
            away := interval '0 seconds';
        END IF;
    END IF;
    IF reason IS NOT NULL THEN
        UPDATE membership SET next_knock_at = greatest(next_knock_at, clock_timestamp()) + interval '250 milliseconds'
        RETURNING next_knock_at - clock_timestamp() + away INTO away;
        RETURN;
    END IF;

    PERFORM write_deployment(settings, joined_before);
    UPDATE membership SET budget = total, arithmetic = basis WHERE (budget, arithmetic) <> (total, basis);
    INSERT INTO members (
        instance, service, version, weight, floor, most, expires_at, control_pid
    )
    SELECT
        self, join_membership.service, join_membership.version, join_membership.weight,
        join_membership.floor,
        -- Its own role may be given less than another one, by which the budget was computed.
        least(join_membership.most, limits.of_role),
        clock_timestamp() + time_to_live,
        CASE WHEN own_session THEN pg_backend_pid() END
    FROM membership
    -- The condition only tells the parser where the SELECT ends.
    WHERE true
    ON CONFLICT ON CONSTRAINT members_pkey DO UPDATE
    SET epoch = DEFAULT,
        expires_at = excluded.expires_at,
        control_pid = excluded.control_pid,
        control_lost_at = NULL,
        consumes = DEFAULT,
        consumes_since = DEFAULT,
        floor = excluded.floor,
        most = excluded.most
    RETURNING members.epoch INTO joined;
    SELECT time_to_live INTO lives FROM membership;
    PERFORM redistribute();
END
$$;

-- Takes part as an instance of the API.
CREATE FUNCTION join_as_api(
    secret bytea, version text, settings jsonb, joined_before uuid,
    weight integer, floor integer, most integer, pool_role text, own_session boolean,
    OUT joined bigint, OUT lives interval, OUT reason text, OUT away interval
)
    LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
        SELECT *
        FROM join_membership(
            secret, 'api', version, settings, joined_before, weight, floor, most, pool_role, own_session
        )
    $$;

-- Takes part as an instance of the worker.
CREATE FUNCTION join_as_worker(
    secret bytea, version text, settings jsonb, joined_before uuid,
    weight integer, floor integer, most integer, pool_role text, own_session boolean,
    OUT joined bigint, OUT lives interval, OUT reason text, OUT away interval
)
    LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
        SELECT *
        FROM join_membership(
            secret, 'worker', version, settings, joined_before, weight, floor, most, pool_role, own_session
        )
    $$;

-- A heartbeat. Looks after the others, too: whoever beats reaps. `held` is the most that the pool may open by itself or has
-- open, `grace` as in the table. Not alive when this instance was reaped itself; `soon` when something is about to change; `sessions` is what the
-- server shows of its pool, of which some may be closed and not ended yet.
CREATE FUNCTION beat_membership(
    secret bytea, epoch bigint, held integer, open integer, in_use integer, waiting integer, demand integer,
    grace interval,
    OUT alive boolean, OUT granted integer, OUT target integer, OUT soon boolean,
    OUT budget integer, OUT instances integer, OUT turn bigint, OUT sessions integer
)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    self uuid := instance_of(secret);
    reaped boolean;
    lost boolean;
    abandoned boolean;
    stranded boolean;
    came_of_age boolean;
    unfair boolean;
    freed boolean;
BEGIN
    -- The other members compute with these, and no number of one may make the statements of all fail.
    open := least(greatest(open, 0), 100000);
    in_use := least(greatest(in_use, 0), 100000);
    waiting := least(greatest(waiting, 0), 100000);
    demand := least(greatest(demand, 0), 100000);
    grace := least(greatest(grace, interval '0'), (SELECT time_to_live FROM membership));
    SELECT
        EXISTS (
            SELECT
            FROM gone_members() AS gone
            WHERE gone.instance <> self
        ),
        EXISTS (
            SELECT
            FROM lost_members() AS missing
            WHERE missing.instance <> self
        ),
        -- A transaction of somebody who is gone still held them.
        EXISTS (
            SELECT
            FROM partitions
            WHERE owner IS NOT NULL AND NOT EXISTS (SELECT FROM members WHERE members.instance = owner)
        ),
        -- They cannot consume.
        EXISTS (
            SELECT
            FROM partitions
            WHERE coalesce(heir, owner) IN (SELECT stranded_workers.instance FROM stranded_workers())
        ),
        NOT me.settled AND me.joined_at <= clock_timestamp() - interval '1 second',
        -- It waits, and there is something for it: what nobody shall have, what another has no use for, or more than its due.
        me.settled AND beat_membership.demand > me.target AND me.target < me.most AND (
            (SELECT sum(members.target) FROM members)
                < membership.budget - arrival_places(membership.budget) - (SELECT count(*) FROM members)
            OR EXISTS (
                SELECT
                FROM members
                WHERE members.instance <> me.instance
                    AND members.target > members.floor
                    AND (
                        kept_connections(members.demand) < members.target
                        OR members.target::double precision / members.weight
                            > (me.target + 1)::double precision / me.weight
                    )
            )
        ),
        me.granted <> me.target
    INTO reaped, lost, abandoned, stranded, came_of_age, unfair, freed
    FROM membership, members AS me
    WHERE me.instance = self AND me.epoch = beat_membership.epoch;
    IF reaped OR lost OR abandoned OR stranded OR came_of_age OR unfair OR freed THEN
        PERFORM FROM membership FOR UPDATE;
        PERFORM pg_stat_clear_snapshot();
        PERFORM note_lost_members();
        reaped := reap_members();
    END IF;

    UPDATE members
    SET expires_at = clock_timestamp() + (SELECT time_to_live FROM membership),
        beat_at = clock_timestamp(),
        settled = settled OR came_of_age,
        -- It closed what it shall not have.
        granted = greatest(least(members.target, members.granted), least(members.granted, held)),
        open = beat_membership.open,
        in_use = beat_membership.in_use,
        waiting = beat_membership.waiting,
        demand = beat_membership.demand,
        grace = beat_membership.grace
    WHERE members.instance = self
        AND members.epoch = beat_membership.epoch
        AND expires_at > clock_timestamp();
    alive := FOUND;

    IF (abandoned OR stranded) AND NOT reaped THEN
        PERFORM redistribute_partitions();
    END IF;
    IF stranded THEN
        PERFORM call_members();
    END IF;
    IF reaped THEN
        PERFORM redistribute();
    ELSIF came_of_age OR unfair THEN
        PERFORM share_connections();
        PERFORM grant_connections();
        PERFORM call_members();
    ELSIF freed AND grant_connections() THEN
        PERFORM call_members();
    END IF;

    SELECT
        members.granted,
        members.target,
        members.granted <> members.target OR EXISTS (
            SELECT
            FROM members AS others
            WHERE others.expires_at < clock_timestamp() + interval '500 milliseconds' OR others.control_lost_at IS NOT NULL
        ),
        membership.budget,
        (SELECT count(*) FROM members),
        membership.turn,
        coalesce((
            SELECT pools.sessions
            FROM pool_sessions() AS pools
            WHERE pool = 'rollcall/' || self
        ), 0)
    INTO granted, target, soon, budget, instances, turn, sessions
    FROM membership, members
    WHERE members.instance = self AND members.epoch = beat_membership.epoch;
END
$$;

-- Lets partitions go, after their channels were closed: each passes to its heir.
CREATE FUNCTION release_partitions(secret bytea, numbers integer[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    self uuid := instance_of(secret);
BEGIN
    -- A caller that owns nothing holds the lock of all up for nothing.
    IF NOT EXISTS (SELECT FROM partitions WHERE owner = self) THEN
        RETURN;
    END IF;
    PERFORM FROM membership FOR UPDATE;
    PERFORM FROM partitions WHERE number = ANY(numbers) AND owner = self FOR UPDATE;
    UPDATE partitions
    SET owner = heir, heir = NULL, epoch = partitions.epoch + 1
    WHERE number = ANY(numbers) AND owner = self AND heir IS NOT NULL;
END
$$;

-- Says whether a worker reaches the broker. What that moves away comes with somebody's heartbeat.
CREATE FUNCTION set_consumes(secret bytea, consumes boolean) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
BEGIN
    -- A caller that is no member holds the lock of all up for nothing.
    IF NOT EXISTS (SELECT FROM members WHERE members.instance = instance_of(secret)) THEN
        RETURN;
    END IF;
    PERFORM FROM membership FOR UPDATE;
    UPDATE members SET consumes = set_consumes.consumes, consumes_since = clock_timestamp()
    WHERE members.instance = instance_of(secret) AND members.consumes <> set_consumes.consumes;
    IF FOUND AND set_consumes.consumes THEN
        PERFORM redistribute_partitions();
        PERFORM call_members();
    END IF;
END
$$;

-- Leaves, after every channel and every connection of the pool was closed.
CREATE FUNCTION leave_membership(secret bytea) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
BEGIN
    -- A caller that is no member holds the lock of all up for nothing.
    IF NOT EXISTS (SELECT FROM members WHERE members.instance = instance_of(secret)) THEN
        RETURN;
    END IF;
    PERFORM FROM membership FOR UPDATE;
    PERFORM pg_stat_clear_snapshot();
    DELETE FROM members WHERE members.instance = instance_of(secret);
    IF FOUND THEN
        PERFORM redistribute();
    END IF;
END
$$;

REVOKE EXECUTE ON FUNCTION join_as_api(bytea, text, jsonb, uuid, integer, integer, integer, text, boolean) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION join_as_worker(bytea, text, jsonb, uuid, integer, integer, integer, text, boolean) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION beat_membership(bytea, bigint, integer, integer, integer, integer, integer, interval) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION release_partitions(bytea, integer[]) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION set_consumes(bytea, boolean) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION leave_membership(bytea) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION connection_limits(text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION arrival_places(integer) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pool_sessions() FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION taken_connections() FROM PUBLIC;
