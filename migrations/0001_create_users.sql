-- One row per user. Ids are UUIDv7, so new rows land at the end of the primary key and pages follow the time of creation.
CREATE TABLE users (
    id uuid NOT NULL,
    -- As it was written; ASCII, which the command contract sees to.
    email text NOT NULL,
    name text NOT NULL,
    status text NOT NULL DEFAULT 'active',
    -- Counts changes; the ETag, and what If-Match compares with.
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    suspended_at timestamptz,
    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_status_check CHECK (status IN ('active', 'suspended')),
    CONSTRAINT users_suspended_at_check CHECK ((status = 'suspended') = (suspended_at IS NOT NULL)),
    CONSTRAINT users_version_check CHECK (version >= 1)
);

-- Unique without regard to case. The collation is fixed, because under the database's own the same address could fold
-- to different keys on different machines.
CREATE UNIQUE INDEX users_email_key ON users (lower(email COLLATE "C"));

-- Pages of one status.
CREATE INDEX users_status_id_idx ON users (status, id);

-- The last version of each deleted user. A user that is created again under the same id (derived from an idempotency key,
-- or replayed) goes on counting above it, so an entity tag or an event version never means two states. Kept for good:
-- the commands that made the versions are dropped by retention.
CREATE TABLE deleted_users (
    id uuid NOT NULL,
    -- The deletion counts as a change, as in its event.
    version bigint NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT deleted_users_pkey PRIMARY KEY (id),
    CONSTRAINT deleted_users_version_check CHECK (version >= 2)
);
